"""Interface to the WAN model that is trained: loaded from files, or the MODEL and VAE of a ComfyUI graph."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..decoding.wan_decoder import WanVideoDecoder
from ..storage.content_hash import hash_content
from ..storage.tensor_cache import TensorCache
from ..wan.condition import Condition
from ..wan.interfaces import Denoiser
from ..wan.spec import WanSpec
from .memory import DitMemory
from .ranks import Ranks


class Backend(Protocol):
    """A WAN model on a device, a folder for runs, and a cache for encoder outputs."""

    @property
    def runs(self) -> Path:
        """Folder in which every run gets a folder of its own."""
        ...

    @property
    def cache(self) -> TensorCache:
        """Cache of everything that is encoded once: text, latents, features, optical flow, masks."""
        ...

    @property
    def device(self) -> torch.device:
        """Device that training runs on."""
        ...

    @property
    def ranks(self) -> Ranks:
        """Processes that train together, and which of them this is."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the DiT computes in."""
        ...

    @property
    def spec(self) -> WanSpec:
        """Sizes of the DiT."""
        ...

    @property
    def weights(self) -> DitMemory:
        """How the DiT's weights are kept, as far as it is known before the DiT is loaded."""
        ...

    @property
    def base_fingerprint(self) -> dict[str, str]:
        """JSON values that identify the frozen DiT and how it computes."""
        ...

    @property
    def vae_fingerprint(self) -> str:
        """Hash that identifies the VAE's weights."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the text context `T 4096` of each caption, float32 on the CPU."""
        ...

    def encode_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return latents `C f h w` in model space, on the CPU, of clips `F 3 H W` in [0, 1], each encoded
        alone.
        """
        ...

    def make_conditions(self, clips: Sequence[Tensor]) -> list[Condition]:
        """Return what the DiT takes of each clip `F 3 H W` in [0, 1] besides its text: nothing for text to
        video. A picture is a clip of one frame. Raises ValueError for what does not fit the clip.
        """
        ...

    def load_decoder(self, recompute: bool = False) -> WanVideoDecoder:
        """Load the VAE's decoder for gradients through it; `recompute` saves memory (see WanVideoDecoder)."""
        ...

    def denoiser_for_training(self, step_bytes: float = 0.0) -> AbstractContextManager[Denoiser]:
        """Load the DiT for the duration of a with block, and leave so many bytes of the device to a step."""
        ...


def encode_clips_once(
    cache: TensorCache,
    vae_fingerprint: str,
    vae_dtype: torch.dtype,
    clips: Sequence[Tensor],
    encode: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Return the latents of each clip `F 3 H W`, from the cache or from `encode`, which computes in
    `vae_dtype`.
    """

    def encode_once(clip: Tensor) -> Tensor:
        def compute() -> dict[str, Tensor]:
            return {"latents": encode(clip)}

        key = {"vae": vae_fingerprint, "frames": hash_content(clip), **describe_precision(vae_dtype)}
        return cache.get_or_compute("latents", key, compute)["latents"]

    return [encode_once(clip) for clip in clips]


def describe_precision(dtype: torch.dtype) -> dict[str, str]:
    """Return the part of a cache key that says which precision a result was computed in: nothing for float32,
    so that keys from before precisions were in them still hold.
    """
    return {} if dtype == torch.float32 else {"dtype": str(dtype)}
