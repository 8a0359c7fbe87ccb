"""The DiT and the VAE of WAN in single files: the configuration that a file's header implies, and the model
filled from the file.

diffusers' own `from_single_file` is not used: it does not apply the scales of fp8 files, downloads the
model's configuration, and accepts files with names that are missing or unknown.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..storage.weight_check import Value
from ..storage.weight_file import read_shapes, read_value_bytes, read_weight_file
from ..wan.module_names import choose_vae_names, to_native_dit_name
from .checkpoint_kind import build_dit_config, build_vae_config, find_prefix
from .checkpoint_weights import Shapes, check_native, fill_native, rename_to_native


@dataclass(frozen=True)
class NativePart:
    """A part of WAN that one file in native names can hold."""

    diffusers_class: str
    choose_names: Callable[[Iterable[str]], Callable[[str], str]]
    """Returns, given all names in a file or a model, the function from diffusers' name of a weight to its
    native name.
    """
    config: Callable[[Shapes, str], dict[str, Any]]
    """Returns the arguments of the class, given the shapes by native name and the file's name."""

    def read_shapes(self, path: Path) -> Shapes:
        """Read the shapes in a file by native name, without its prefix; ValueError when it is unreadable."""
        return self._rename(read_shapes(path), path.name)

    def read_value_bytes(self, path: Path) -> dict[str, float]:
        """Read how many bytes a value of each weight takes, by native name, as `read_shapes` does."""
        return self._rename(read_value_bytes(path), path.name)

    def check_shapes(self, shapes: Shapes, source: str) -> None:
        """Raise ValueError unless a file with these shapes fills the model exactly (see check_native)."""
        model = self.build_empty(shapes, source)
        check_native(model, self.choose_names(model.state_dict()), shapes, source)

    def build_empty(self, shapes: Shapes, source: str) -> Any:
        """Build the model of these shapes on the meta device; buffers that it computes itself have values."""
        import diffusers
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            return getattr(diffusers, self.diffusers_class)(**self.config(shapes, source))

    def load(self, path: Path, dtype: torch.dtype, keeps_form: Callable[[str], bool] | None = None) -> Any:
        """Load the model from a file, in `dtype`; ValueError as fill_native raises.

        fp8 weights for whose native name `keeps_form` is true stay as they are in the file (see fill_native).
        """
        tensors = self._rename(read_weight_file(path).tensors, path.name)
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        model = self.build_empty(shapes, path.name)
        # diffusers computes time, norms and modulations in float32, as WAN's authors do.
        precise = tuple(model._keep_in_fp32_modules or ())
        names = self.choose_names(model.state_dict())
        fill_native(model, names, tensors, dtype, path.name, precise, keeps_form)
        return model

    def _rename(self, values: dict[str, Value], source: str) -> dict[str, Value]:
        return rename_to_native(values, self.choose_names(values), source, find_prefix(values))


DIT = NativePart("WanTransformer3DModel", lambda names: to_native_dit_name, build_dit_config)
VAE = NativePart("AutoencoderKLWan", choose_vae_names, build_vae_config)
