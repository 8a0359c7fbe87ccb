"""What a job will take, said before it starts."""

import logging
import time

import torch

from ..smra_core.sparse import SparsePlan
from ..smra_core.trainer import TrainSettings
from ..smra_core.training_cost import activation_bytes, lora_parameters, optimiser_bytes, step_flops
from ..smra_core.wan import WanSpec, token_grid
from .graph_progress import spoken

log = logging.getLogger("smrabooth")

_FLOW_BYTES, _DECODER_BYTES, _COUNTED_PIXELS = 3.4e9, 2.2e9, 576 * 320
"""Of the flow net's and the decoder's activations while a motion is aligned, at the paper's size."""


class Estimate:
    """Of one job on one model."""

    def __init__(self, spec: WanSpec, plan: SparsePlan, rank: int, train: TrainSettings, latents: torch.Size):
        """`latents` is a sample's shape `16 f h w`."""
        self.spec, self.train = spec, train
        self.modules = plan.select(spec.linear_names())
        self.parameters = lora_parameters(spec, self.modules, rank)
        self.tokens = 1
        for side in token_grid(latents):
            self.tokens *= side

    def memory(self, dtype: torch.dtype, aligned_pixels: int = 0, projector: int = 0) -> int:
        """Bytes beside the model's weights; `aligned_pixels` is a frame's size where flow is aligned."""
        activations = activation_bytes(self.spec, self.tokens, self.train.batch_size, dtype.itemsize)
        teachers = (_FLOW_BYTES + _DECODER_BYTES) * aligned_pixels / _COUNTED_PIXELS
        # Teachers work while the DiT keeps only what lies between its blocks; both are counted to be safe.
        return round(activations + teachers) + optimiser_bytes(self.parameters + projector)

    def seconds(self, device: torch.device, dtype: torch.dtype) -> float:
        """Of all steps, from the speed of one product on this device; the DiT alone."""
        samples = self.train.steps * self.train.batch_size * self.train.accumulate
        return samples * step_flops(self.spec, self.tokens) / measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations per second of a square product."""
    size = size if device.type == "cpu" else 4 * size
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    (a @ b)[0, 0].item()
    started = time.monotonic()
    (a @ b)[0, 0].item()  # item() waits for the device
    return 2 * size**3 / max(time.monotonic() - started, 1e-6)


def weights_bytes(model) -> int:
    return model.model_size()


def report(
    estimate: Estimate, samples: str, memory: int, weights: int, seconds: float, at_least: bool
) -> str:
    """One line for the node and the log."""
    line = (
        f"Training on {samples}, {estimate.tokens} tokens each: {len(estimate.modules)} modules, "
        f"{estimate.parameters / 1e6:.1f} M parameters, {estimate.train.steps} steps. About "
        f"{(memory + weights) / 2**30:.1f} GiB ({weights / 2**30:.1f} of it weights, which may stay in RAM), "
        f"{'at least' if at_least else 'about'} {spoken(seconds)}."
    )
    log.info(line)
    return line
