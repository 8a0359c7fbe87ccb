"""Where weight files of the encoders lie: the pack's own model folders, those that ComfyUI and other packs
use already, and the miniature's files, which come with the pack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ...smra_core.encoders.dinov2_files import is_dinov2
from ...smra_core.miniature.weight_paths import WEIGHTS
from ...smra_core.storage.weight_file import read_shapes
from ...smra_core.wan.spec import LATENT_SPACES

SAFETENSORS = (".safetensors", ".sft")
SUFFIXES = (*SAFETENSORS, ".pth", ".pt", ".ckpt", ".bin")
MINIATURE = "miniature (comes with the pack)"
NOTHING = "no file found: see the tooltip"


@dataclass(frozen=True)
class WeightFolder:
    """A kind of weight file that our loader nodes offer."""

    name: str
    own_folders: tuple[str, ...]
    """ComfyUI's names of folders for this kind alone, the preferred one first. All weight files in them are
    offered, whatever their names are, such as the hub's `model.safetensors`.
    """
    shared_folders: tuple[str, ...]
    """ComfyUI's names of folders that also hold other models."""
    words: tuple[str, ...]
    """Words, in lower case, one of which the name of a file in a shared folder holds."""
    download: str
    """A published file, and where to find it."""
    miniature: str = ""
    """Name of the file among the miniature's weights; empty where it has none."""
    recognize: Callable[[Mapping[str, tuple[int, ...]]], bool] | None = None
    """Function that tells this kind by the names and shapes in a safetensors file, for files in shared
    folders whose names say nothing.
    """

    @property
    def folders(self) -> tuple[str, ...]:
        """ComfyUI's names of all folders that are searched, the preferred one first."""
        return self.own_folders + self.shared_folders

    def list_files(self) -> list[str]:
        """Return the files that are there, with the folder's name before each."""
        files = [(folder, file) for folder in self.own_folders for file in _list_files(folder)]
        for folder in self.shared_folders:
            files += [(folder, file) for file in _list_files(folder) if self._is_of_kind(folder, file)]
        return [f"{folder}/{file}" for folder, file in files]

    def _is_of_kind(self, folder: str, file: str) -> bool:
        """Return whether a file of a shared folder is of this kind, by its name or else by its header."""
        if any(word in file.lower() for word in self.words):
            return True
        if self.recognize is None or not file.lower().endswith(SAFETENSORS):
            return False
        path = _find_path(folder, file)
        return path is not None and self.recognize(_read_header(path))

    def list_choices(self) -> list[str]:
        """Return what a loader offers; never empty, because ComfyUI cannot show an empty list."""
        own = [MINIATURE] if self.miniature and (WEIGHTS / self.miniature).is_file() else []
        return self.list_files() + own or [NOTHING]

    def find(self, choice: str) -> Path:
        """Return the path of a choice, in the folder that it names or else in another folder of the kind.

        Workflows are shared between people who keep the same file in different folders. Raises ValueError,
        with what to download, when the file is in none of them.
        """
        if choice == MINIATURE and self.miniature:
            return WEIGHTS / self.miniature
        named, _, file = choice.partition("/")
        if named in self.folders and file:
            others = [folder for folder in self.folders if folder != named]
            for folder in (named, *others):
                if path := _find_path(folder, file):
                    return path
        raise ValueError(
            f"There is no file of {self.name} called {choice!r}. Download {self.download} into "
            f"models/{self.folders[0]}, then refresh the node list (R) and choose it."
        )

    @property
    def tooltip(self) -> str:
        """Sentence that says which file is meant, and where it goes."""
        return f"Weights of {self.name}: {self.download}, in models/{self.folders[0]}."


DINOV2 = WeightFolder(
    "DINOv2",
    ("dinov2",),
    ("clip_vision",),
    ("dino",),
    "dinov2_vitg14_pretrain.pth of facebookresearch/dinov2 (the paper's), or ViT-L, B, S for less memory",
    "dinov2_miniature.safetensors",
    is_dinov2,
)
SEA_RAFT = WeightFolder(
    "SEA-RAFT",
    ("optical_flow", "sea_raft"),
    (),
    ("raft", "tartan", "spring"),
    "Tartan-C-T-TSKH-spring540x960-M.pth of princeton-vl/SEA-RAFT (the paper's), or -S for small cards",
    "sea_raft_miniature.safetensors",
)
SAM = WeightFolder(
    "SAM",
    (),
    ("sams",),
    ("sam",),
    "sam_vit_h_4b8939.pth of facebookresearch/segment-anything, or vit_l, vit_b for less memory",
)
TINY_DECODER = WeightFolder(
    "a tiny decoder",
    (),
    ("vae_approx",),
    tuple(name for latents in LATENT_SPACES.values() for name in latents.tiny_files),
    "lighttaew2_1.safetensors or taew2_1.safetensors (for TI2V-5B lighttaew2_2 or taew2_2), which ComfyUI "
    "also draws previews with",
)


def _list_files(folder: str) -> list[str]:
    """List the names of the weight files in one of ComfyUI's folders and in the folders inside of it."""
    import folder_paths

    _register(folder_paths, folder)
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(SUFFIXES)]


def _find_path(folder: str, file: str) -> Path | None:
    """Return the path of a file in one of ComfyUI's folders; None if it is not there."""
    import folder_paths

    _register(folder_paths, folder)
    path = folder_paths.get_full_path(folder, file)
    return None if path is None else Path(path)


def _read_header(path: Path) -> Mapping[str, tuple[int, ...]]:
    """Return names and shapes in a safetensors file; empty if it cannot be read."""
    state = path.stat()
    return _read_header_once(path, state.st_size, state.st_mtime_ns)


# ComfyUI builds the lists of all nodes anew whenever a page is loaded.
@lru_cache(maxsize=256)
def _read_header_once(path: Path, size: int, time: int) -> Mapping[str, tuple[int, ...]]:
    try:
        return read_shapes(path)
    except (ValueError, OSError):
        return {}


def _register(folder_paths, folder: str) -> None:
    """Register a folder that this version of ComfyUI lacks; one that it or another pack has stays."""
    if folder not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(folder, str(Path(folder_paths.models_dir) / folder))
