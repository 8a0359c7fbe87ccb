"""Gradient that decoded windows give a motion LoRA, against the gradient of the whole clip.

Windows save time and memory in training. What they cost is not seen in pixels but in the gradient of the
LoRA: a window shows a part of the frame pairs, and its first frames are decoded from a state of the
reference. Both depend on the model and on the clip, so `python -m smra_core window-error` measures them on
the user's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.motion_clip import MotionClip
from ..decoding.flow_gradient import FlowComparison, compute_loss_and_gradient
from ..decoding.windows import DecodeWindow, take_whole_clip, warm_windows
from ..encoders.sea_raft import PAIRS_PER_CHUNK, load_sea_raft
from ..lora.adapter import Injection, Lora, init_lora, injected
from ..wan.flow_matching import add_noise, x0_from_velocity
from ..wan.interfaces import Denoiser
from .backend import Backend
from .batches import collate, move_to_device
from .mora import LATENTS_AT_ONCE, MotionSample, flow_alignment_loss
from .motion import prepare_motion
from .motion_settings import MotionSettings
from .random_stream import make_generator

CONTEXTS = range(1, 5)
"""Numbers of latents decoded before a window that are compared."""
SIGMAS = (0.3, 0.5, 0.7, 0.9)
"""Noise levels whose predictions are compared."""


class WindowGradient(NamedTuple):
    """Gradient of MoRA from windows, compared with that from the whole clip."""

    context: int
    """Number of latents decoded before a window."""
    windows: int
    """Number of windows of the clip."""
    one_cosine: float
    """Cosine of the gradient of one window, averaged over windows and noise levels: that of a step."""
    one_norm: float
    """Root mean square of its norm over the whole clip's."""
    all_cosine: float
    """Cosine of the mean gradient over all windows and noise levels: that of many steps."""
    all_norm: float
    """Norm of that mean over the whole clip's."""


def measure_window_gradients(
    denoiser: Denoiser,
    lora: Lora,
    sample: MotionSample,
    comparison: FlowComparison,
    windows_by_context: Mapping[int, Sequence[DecodeWindow]],
    sigmas: Sequence[float] = SIGMAS,
) -> list[WindowGradient]:
    """Compare the gradients of the LoRA's parameters for each context, on the model's own predictions.

    `sample` is the encoded clip, on the model's device. A LoRA at its start has a gradient in B alone, which
    is then what is compared.
    """
    parameters = [parameter for pair in lora.values() for parameter in pair.parameters()]
    sums: dict[int, list[Tensor]] = {context: [] for context in windows_by_context}
    ones: dict[int, list[tuple[float, float]]] = {context: [] for context in windows_by_context}
    wholes = []
    with injected(denoiser.linears(), Injection(lora)):
        for number, sigma in enumerate(sigmas):
            x0 = _predict(denoiser, sample, sigma, make_generator("window gradient", number))

            def compute_gradient(window: DecodeWindow, x0: Tensor = x0) -> Tensor:
                # The large stages of a window start later than the small ones: in one graph only.
                how = comparison._replace(latents_at_once=0) if window.small_stages_only else comparison
                reference = sample.reference_flow
                _, gradient = compute_loss_and_gradient(
                    x0.detach(), reference, how, window, sample.flow_weight_px
                )
                parts = torch.autograd.grad(x0, parameters, gradient, retain_graph=True)
                return torch.cat([part.flatten() for part in parts])

            (whole,) = (compute_gradient(window) for window in take_whole_clip(x0.shape[2]))
            wholes.append(whole)
            for context, windows in windows_by_context.items():
                gradients = [compute_gradient(window) for window in windows]
                ones[context] += [_compare(each, whole) for each in gradients]
                sums[context].append(torch.stack(gradients).mean(0))
    whole = torch.stack(wholes).mean(0)
    return [
        _make_row(context, len(windows), ones[context], _compare(torch.stack(sums[context]).mean(0), whole))
        for context, windows in windows_by_context.items()
    ]


def measure_clip_gradients(
    backend: Backend, clip: MotionClip, sea_raft: Path, settings: MotionSettings
) -> list[WindowGradient]:
    """Compare the gradients for each context on a model and a clip, with a new LoRA of these settings.

    The whole clip is decoded in little memory, one latent at a time.
    """
    (encoded,) = prepare_motion(backend, [clip], sea_raft)
    sample = move_to_device(encoded, backend.device)
    lora = init_lora(backend.spec, settings.plan, settings.rank, make_generator("window gradient"))
    for pair in lora.values():
        pair.to(backend.device)
    decoder, flow_net = backend.load_decoder(), load_sea_raft(sea_raft).to(backend.device)
    comparison = FlowComparison(
        decoder, flow_net.compute_pair_flows, flow_alignment_loss, LATENTS_AT_ONCE, PAIRS_PER_CHUNK
    )
    windows = {
        context: warm_windows(sample.latents, decoder, settings.window, context) for context in CONTEXTS
    }
    with backend.denoiser_for_training() as denoiser:
        return measure_window_gradients(denoiser, lora, sample, comparison, windows)


def _predict(denoiser: Denoiser, sample: MotionSample, sigma: float, generator: torch.Generator) -> Tensor:
    """Return the clean latents `1 C f h w` that the model predicts at a noise level, with their gradient."""
    batch = collate([sample])
    noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
    level = batch.latents.new_full((1,), sigma)
    noisy = add_noise(batch.latents, noise, level)
    velocity = denoiser.velocity(noisy, level, batch.context, extra=batch.extra).velocity
    return x0_from_velocity(noisy, velocity, level)


def _compare(gradient: Tensor, whole: Tensor) -> tuple[float, float]:
    """Return the cosine of two gradients, and the norm of the first over that of the second."""
    return F.cosine_similarity(gradient, whole, dim=0).item(), (gradient.norm() / whole.norm()).item()


def _make_row(
    context: int, windows: int, ones: Sequence[tuple[float, float]], together: tuple[float, float]
) -> WindowGradient:
    cosine = sum(each for each, _ in ones) / len(ones)
    norm = (sum(each**2 for _, each in ones) / len(ones)) ** 0.5
    return WindowGradient(context, windows, cosine, norm, *together)


def render_gradients(gradients: Sequence[WindowGradient]) -> str:
    """Render the comparison as a table in plain text, one line for each context."""
    return "\n".join(_render_rows(gradients))


def _render_rows(gradients: Sequence[WindowGradient]) -> Iterator[str]:
    yield f"{'':>7} {'one window':>15} {'all windows':>15}"
    yield f"{'context':>7} {'cosine':>8} {'norm':>6} {'cosine':>8} {'norm':>6}"
    for row in gradients:
        yield (
            f"{row.context:7d} {row.one_cosine:8.3f} {row.one_norm:6.2f} {row.all_cosine:8.3f} "
            f"{row.all_norm:6.2f}"
        )
