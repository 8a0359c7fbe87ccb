"""The loader node's way to add LoRAs while sampling, on a DiT outside of ComfyUI.

The pack's nodes are a package that only ComfyUI can import as a whole, but the swap needs nothing of ComfyUI
but the name of a function that fuses INT8 linears, which is answered here by an empty module.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

from smra_core.wan.interfaces import Denoiser, Prediction

ROOT = Path(__file__).parents[3]
PACKAGE = "pack_without_comfyui"


def import_swap() -> type:
    """Return the class CallTimeSwap."""
    for name, folder in ((PACKAGE, ROOT), (f"{PACKAGE}.nodes", ROOT / "nodes")):
        if name not in sys.modules:
            package = sys.modules[name] = ModuleType(name)
            package.__path__ = [str(folder)]
    return import_module(f"{PACKAGE}.nodes.patching.call_time_swap").CallTimeSwap


@contextmanager
def empty_comfyui() -> Iterator[None]:
    """Answer `import comfy.ops` by an empty module."""
    names = ("comfy", "comfy.ops")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules["comfy"], sys.modules["comfy.ops"] = ModuleType("comfy"), ModuleType("comfy.ops")
    sys.modules["comfy"].ops = sys.modules["comfy.ops"]
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


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
        self.swap = import_swap()(loras, lambda model: t_point)
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
