"""Run a training job from a node: show the forecast first, then train, and explain what stopped it."""

import traceback
from collections.abc import Callable, Sequence

from ...smra_core.training.job import TrainedLora
from ..host.backend import ComfyBackend
from ..host.denoiser import choose_training_dtype
from ..host.foreign_code import find_foreign_code
from ..host.model_patches import list_trained_patches
from ..host.trial_step import explain_overwriting
from ..host.versions import is_out_of_memory, measure_trainable_memory
from ..host.widgets import show_text
from .forecast import Forecast, measure_flops
from .outputs import log


def show_forecast(node: type, backend: ComfyBackend, forecast: Forecast, notes: Sequence[str]) -> None:
    """Show what the run will take, and let ComfyUI keep that much memory free."""
    backend.memory_required = forecast.memory
    seconds = forecast.estimate_seconds(measure_flops(backend.device, choose_training_dtype(backend.device)))
    for note in backend.notes:
        log.info("%s", note)
    weights = backend.weights.model_bytes
    lacks = forecast.describe_lack(weights, measure_trainable_memory(backend.device))
    lines = [forecast.describe(weights, seconds), *lacks, *backend.notes, *notes]
    show_text(node, "\n".join(lines))


def run_training(
    node: type, backend: ComfyBackend, train: Callable[[], TrainedLora], memory_advice: str
) -> TrainedLora:
    """Train, and show on the node what is not as asked for.

    Out of memory raises RuntimeError with the advice, when the failed step's memory is free. An error that
    rises in another pack's code, or through a patch of the MODEL, raises RuntimeError that names it. Whatever
    the error is, nothing of the failed step is kept alive by it.
    """
    import comfy.model_management as management

    try:
        trained = train()
    except management.InterruptProcessingException:  # an Exception in older versions
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            cause = explain_error(error, backend.model)
            _release_frames(error)
            if cause is None:
                raise
            raise RuntimeError(cause) from error
        log.warning("Out of memory: %s", error)
    else:
        if trained.notes:
            show_text(node, "\n".join(trained.notes))
        return trained
    management.soft_empty_cache()
    raise RuntimeError(f"Out of memory while training; all finished steps are kept. {memory_advice}")


def explain_error(error: Exception, model) -> str | None:
    """Return which patch, pack or variant of WAN an error came from and what to do; None where it is this
    pack's own.
    """
    seen = f"{type(error).__name__}: {error}"
    kept = "All finished steps are kept."
    foreign = find_foreign_code(error)
    if foreign is not None:
        return (
            f"Training was stopped by {foreign}, a patch or node of another pack, with {seen}. {kept} "
            "Connect the MODEL and the VAE from before the node that put it there."
        )
    overwriting = explain_overwriting(model, error)
    if overwriting is not None:
        return overwriting
    patches = list_trained_patches(model)
    if not patches or isinstance(error, (ValueError, OSError)):
        return None
    return (
        f"Training was stopped by {seen}. {kept} This MODEL carries patches of other nodes: "
        f"{', '.join(patches[:5])}. Connect the MODEL from before these nodes."
    )


def _release_frames(error: BaseException | None) -> None:
    """Clear the local variables of the frames that an error and its causes refer to.

    ComfyUI keeps the error of a prompt until its next garbage collection. The frames would keep the tensors
    of the failed step until then, and suspended context managers of other packs would stay open.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
