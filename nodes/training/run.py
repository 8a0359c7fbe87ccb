"""One training run inside the graph: told beforehand, shown while it runs, handed out at the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...smra_core.training.job import TrainedLora
from ..host.backend import ComfyBackend
from ..host.denoiser import training_dtype
from ..host.versions import is_out_of_memory
from ..host.widgets import show_text
from .forecast import Forecast, measured_flops
from .outputs import Outputs, log, publish_lora
from .progress import GraphProgress, Preview

Train = Callable[[str, GraphProgress], TrainedLora]
"""Called with the LoRA's name and what to report to."""


def show_forecast(node: type, backend: ComfyBackend, forecast: Forecast, notes: Sequence[str]) -> None:
    """Show what the job will take, and have the host keep the memory free."""
    backend.memory_required = forecast.memory
    seconds = forecast.seconds(measured_flops(backend.device, training_dtype(backend.device)))
    show_text(node, "\n".join([forecast.line(backend.model.model_size(), seconds), *notes]))


def run_training_node(
    node: type,
    backend: ComfyBackend,
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
    preview = Preview(backend, context, shape, values["preview_every"], values["training_seed"])
    progress = GraphProgress(node, preview)
    return publish_lora(run_training(lambda: train(name, progress), remedy), name)


def run_training(train: Callable[[], TrainedLora], remedy: str) -> TrainedLora:
    """Train; out of memory becomes an error in our words, raised when the failed step's memory is free."""
    import comfy.model_management as management

    try:
        return train()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("Out of memory: %s", error)
    management.soft_empty_cache()
    raise RuntimeError(f"Out of memory while training; all finished steps are kept. {remedy}")
