"""Run a training job from a node: show the forecast first, then train, and explain out of memory."""

from collections.abc import Callable, Sequence

from ...smra_core.training.job import TrainedLora
from ..host.backend import ComfyBackend
from ..host.denoiser import choose_training_dtype
from ..host.versions import is_out_of_memory
from ..host.widgets import show_text
from .forecast import Forecast, measure_flops
from .outputs import log


def show_forecast(node: type, backend: ComfyBackend, forecast: Forecast, notes: Sequence[str]) -> None:
    """Show what the run will take, and let ComfyUI keep that much memory free."""
    backend.memory_required = forecast.memory
    seconds = forecast.estimate_seconds(measure_flops(backend.device, choose_training_dtype(backend.device)))
    show_text(node, "\n".join([forecast.describe(backend.model.model_size(), seconds), *notes]))


def run_training(train: Callable[[], TrainedLora], memory_advice: str) -> TrainedLora:
    """Train. Out of memory raises RuntimeError with the advice, when the failed step's memory is free."""
    import comfy.model_management as management

    try:
        return train()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("Out of memory: %s", error)
    management.soft_empty_cache()
    raise RuntimeError(f"Out of memory while training; all finished steps are kept. {memory_advice}")
