"""Outputs of a training node: copy the LoRA to the loras folder, return ComfyUI's LORA_MODEL and LOSS_MAP."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from comfy_api.latest import io, ui
from torch import Tensor

from ...smra_core.evaluation.loss_plot import take_losses
from ...smra_core.storage.atomic_write import write_atomically
from ...smra_core.storage.weight_file import read_weight_file
from ...smra_core.training.job import TrainedLora
from ...smra_core.training.run_folder import read_losses
from .loss_picture import draw_loss_image

log = logging.getLogger("smrabooth")


class LoraTensors(dict[str, Tensor]):
    """A LORA_MODEL, which is a mapping of tensors by name, with the metadata of the file that it is from."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]):
        super().__init__(tensors)
        self.metadata = dict(metadata)


class Outputs(NamedTuple):
    """Outputs of a training node, in their order."""

    lora: LoraTensors
    """LORA_MODEL: tensors on the CPU by the names of ComfyUI's LoRA files."""
    loss_map: dict[str, list[float]]
    """LOSS_MAP: the total of each step as `loss`, and every named loss."""
    steps: int
    """Number of trained steps."""
    file: str
    """Name of the file, as ComfyUI's LoRA loaders list it."""


def publish_lora(trained: TrainedLora) -> Outputs:
    """Copy a finished run's file to where ComfyUI looks for LoRAs, and return the node's outputs."""
    target = publish_file(trained.path, f"{trained.name}_{trained.steps}")
    losses = read_losses(trained.losses)
    loss_map = {"loss": _spread_totals(losses["total"])}
    loss_map |= take_losses(losses)
    file = read_weight_file(trained.path)
    return Outputs(LoraTensors(file.tensors, file.metadata), loss_map, trained.steps, target.name)


def publish_file(path: Path, name: str) -> Path:
    """Copy a LoRA file of a run to where ComfyUI looks for LoRAs, and return the copy.

    It is called by `name` and the first letters of the run's hash, so that no file of another run is lost.
    """
    import folder_paths

    folder = Path(folder_paths.get_output_directory()) / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    run = path.parent.name.rsplit("-", 1)[-1]
    target = folder / f"{name}_{run[:8]}.safetensors"
    if not target.is_file() or target.stat().st_size != path.stat().st_size:
        with write_atomically(target) as draft:
            shutil.copyfile(path, draft)
    _register_folder(folder_paths, folder)
    return target


def _register_folder(folder_paths, folder: Path) -> None:
    """Make output/loras a LoRA folder: ComfyUI's main program does so, other ways to start it do not."""
    known = [os.path.normpath(path) for path in folder_paths.get_folder_paths("loras")]
    if os.path.normpath(folder) not in known:
        folder_paths.add_model_folder_path("loras", str(folder))


def _spread_totals(totals: list[float]) -> list[float]:
    # ComfyUI's plot divides by the range; a curve of one step has none.
    return totals if len(set(totals)) > 1 else [*totals, totals[-1] * (1 + 1e-6) + 1e-12]


def make_node_output(trained: TrainedLora) -> io.NodeOutput:
    """Publish the LoRA, and return the node's outputs with the loss curves drawn on it."""
    picture = draw_loss_image(read_losses(trained.losses))
    return io.NodeOutput(*publish_lora(trained), ui=ui.PreviewImage(picture))
