"""Where the teachers' weights lie: our own model folders, those that the host and other packs use already,
and the miniature's, which come with the pack.
"""

from dataclasses import dataclass
from pathlib import Path

from ...smra_core.miniature.weight_paths import WEIGHTS

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
MINIATURE = "miniature (comes with the pack)"
NOTHING = "no file found: see the tooltip"


@dataclass(frozen=True)
class WeightFolder:
    """One of the nets that training asks for advice."""

    name: str
    folders: tuple[str, ...]
    """The host's names of model folders, the preferred one first."""
    words: tuple[str, ...]
    """What a file's name holds, in lower case, where a folder is shared with other models."""
    download: str
    """A published file, and where it is found."""
    miniature: str = ""
    """File among the miniature's weights."""

    def found(self) -> list[str]:
        """Files that are there, with the folder's name before each."""
        return [f"{folder}/{file}" for folder in self.folders for file in _files(folder, self.words)]

    def choices(self) -> list[str]:
        """What a loader offers; never empty, as the host cannot show an empty list."""
        own = [MINIATURE] if self.miniature and (WEIGHTS / self.miniature).is_file() else []
        return self.found() + own or [NOTHING]

    def path(self, choice: str) -> Path:
        """The file of a choice. ValueError, with what to download, when it is not there."""
        import folder_paths

        if choice == MINIATURE and self.miniature:
            return WEIGHTS / self.miniature
        folder, _, file = choice.partition("/")
        path = folder_paths.get_full_path(folder, file) if folder in self.folders and file else None
        if path is None:
            raise ValueError(
                f"There is no file of {self.name} called {choice!r}. Download {self.download} into "
                f"models/{self.folders[0]}, then refresh the node list (R)."
            )
        return Path(path)

    @property
    def tooltip(self) -> str:
        return f"Weights of {self.name}: {self.download}, in models/{self.folders[0]}."


DINOV2 = WeightFolder(
    "DINOv2",
    ("dinov2", "clip_vision"),
    ("dino",),
    "dinov2_vitg14_pretrain.pth of facebookresearch/dinov2 (the paper's), or ViT-L, B, S for less memory",
    "dinov2_miniature.safetensors",
)
SEA_RAFT = WeightFolder(
    "SEA-RAFT",
    ("optical_flow", "sea_raft"),
    ("raft", "tartan", "spring"),
    "Tartan-C-T-TSKH-spring540x960-M.pth of princeton-vl/SEA-RAFT (the paper's), or -S for small cards",
    "sea_raft_miniature.safetensors",
)
SAM = WeightFolder(
    "SAM",
    ("sams",),
    ("sam",),
    "sam_vit_h_4b8939.pth of facebookresearch/segment-anything, or vit_l, vit_b for less memory",
)
TINY_DECODER = WeightFolder(
    "a tiny decoder",
    ("vae_approx",),
    ("taew2_1",),
    "lighttaew2_1.safetensors or taew2_1.safetensors, which ComfyUI also draws previews with",
)


def _files(folder: str, words: tuple[str, ...]) -> list[str]:
    import folder_paths

    _register(folder_paths, folder)
    names = folder_paths.get_filename_list(folder)
    return [
        name
        for name in names
        if name.lower().endswith(SUFFIXES) and any(word in name.lower() for word in words)
    ]


def _register(folder_paths, folder: str) -> None:
    """Make a folder known that this version of the host lacks; one that it or another pack has stays."""
    if folder not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(folder, str(Path(folder_paths.models_dir) / folder))
