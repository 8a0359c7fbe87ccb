"""One training run inside the graph: told beforehand, shown while it runs, handed out at the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...smra_core.training.job import TrainedLora
from ...smra_core.wan.spec import LATENT_CHANNELS, SPATIAL_STRIDE, latent_frames
from ..host.backend import GraphPlace
from ..host.denoiser import training_dtype
from ..host.widgets import show_text
from .forecast import Forecast, measured_flops
from .outputs import Outputs, published, run_to_the_end
from .progress import GraphProgress, Preview

Train = Callable[[str, GraphProgress], TrainedLora]
"""Called with the LoRA's name and what to report to."""


def latent_shape(frames: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Of a sample, `16 f h w`."""
    return LATENT_CHANNELS, latent_frames(frames), height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


def tell(node: type, place: GraphPlace, forecast: Forecast, notes: Sequence[str]) -> None:
    """Show what the job will take, and have the host keep the memory free."""
    place.memory_required = forecast.memory
    seconds = forecast.seconds(measured_flops(place.device, training_dtype(place.device)))
    show_text(node, "\n".join([forecast.line(place.model.model_size(), seconds), *notes]))


def trained_in_graph(
    node: type,
    place: GraphPlace,
    values: Mapping[str, Any],
    name: str,
    context: Tensor,
    shape: tuple[int, ...],
    train: Train,
    remedy: str,
) -> Outputs:
    """Run a job to its end. `context` `T 4096` and `shape` `16 f h w` are what previews are made of; `remedy`
    says what to lower when memory does not suffice.
    """
    preview = Preview(place, context, shape, values["preview_every"], values["training_seed"])
    progress = GraphProgress(node, preview)
    return published(run_to_the_end(lambda: train(name, progress), remedy), name)
