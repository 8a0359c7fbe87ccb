"""Where weight files of the encoders lie: the pack's own model folders, those that ComfyUI and other packs
use already, and the miniature's files, which come with the pack.
"""

from dataclasses import dataclass
from pathlib import Path

from ...smra_core.miniature.weight_paths import WEIGHTS

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
MINIATURE = "miniature (comes with the pack)"
NOTHING = "no file found: see the tooltip"


@dataclass(frozen=True)
class WeightFolder:
    """A kind of weight file that our loader nodes offer."""

    name: str
    folders: tuple[str, ...]
    """ComfyUI's names of model folders, the preferred one first."""
    words: tuple[str, ...]
    """Words, in lower case, one of which a file's name holds; the folder may be shared with other models."""
    download: str
    """A published file, and where to find it."""
    miniature: str = ""
    """Name of the file among the miniature's weights; empty where it has none."""

    def list_files(self) -> list[str]:
        """Return the files that are there, with the folder's name before each."""
        return [f"{folder}/{file}" for folder in self.folders for file in _list_files(folder, self.words)]

    def list_choices(self) -> list[str]:
        """Return what a loader offers; never empty, because ComfyUI cannot show an empty list."""
        own = [MINIATURE] if self.miniature and (WEIGHTS / self.miniature).is_file() else []
        return self.list_files() + own or [NOTHING]

    def find(self, choice: str) -> Path:
        """Return the path of a choice. Raises ValueError, with what to download, when it is not there."""
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
        """Sentence that says which file is meant, and where it goes."""
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


def _list_files(folder: str, words: tuple[str, ...]) -> list[str]:
    import folder_paths

    _register(folder_paths, folder)
    names = folder_paths.get_filename_list(folder)
    return [
        name
        for name in names
        if name.lower().endswith(SUFFIXES) and any(word in name.lower() for word in words)
    ]


def _register(folder_paths, folder: str) -> None:
    """Register a folder that this version of ComfyUI lacks; one that it or another pack has stays."""
    if folder not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(folder, str(Path(folder_paths.models_dir) / folder))
