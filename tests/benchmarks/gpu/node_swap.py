"""The loader node's way to add LoRAs while sampling, on a DiT outside of ComfyUI.

The swap needs nothing of ComfyUI but the name of a function that fuses INT8 linears, which is answered here
by an empty module.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import nn

from smra_core.wan.interfaces import Denoiser, Prediction
from tests.benchmarks.gpu.pack_without_comfyui import empty_comfyui, import_file


class NativeView(nn.Module):
    """Linears of a DiT under the names that ComfyUI's model has them by; they are the same modules."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        for name, linear in denoiser.linears().items():
            parent = self
            *path, last = f"diffusion_model.{name}".split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, linear)

    def get_dtype_inference(self) -> torch.dtype:
        """Return the dtype that the model computes in, as ComfyUI's model does."""
        return self.dtype


class SwappedDenoiser:
    """A denoiser whose evaluations go through the loader node's swap (protocol: wan.interfaces.Denoiser)."""

    def __init__(self, denoiser: Denoiser, loras: Sequence, t_point, sigmas: torch.Tensor, dtype):
        self.denoiser, self.spec, self.sigmas = denoiser, denoiser.spec, sigmas
        swap = import_file("nodes.patching.call_time_swap").CallTimeSwap
        self.swap = swap(loras, lambda model: t_point)
        self.view = NativeView(denoiser, dtype)

    def linears(self) -> dict[str, nn.Module]:
        """Return the linears of all blocks by native name."""
        return self.denoiser.linears()

    def velocity(self, noisy_latents, sigma, context, token_block=None) -> Prediction:
        """See wan.interfaces.Denoiser."""

        class Executor(SimpleNamespace):
            def __call__(executor, x, t, **options):
                return self.denoiser.velocity(x, t, context)

        with empty_comfyui():
            return self.swap(
                Executor(class_obj=self.view),
                noisy_latents,
                sigma,
                transformer_options={"sample_sigmas": self.sigmas},
            )
