"""Where a job runs and what it keeps: the device, the folders, and everything that is encoded only once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..decoding.wan_decoder import FrozenDecoder
from ..storage.on_demand import on_demand
from ..storage.tensor_cache import TensorCache, content_hash
from ..wan.interfaces import Denoiser
from ..wan.spec import WanSpec
from .model_files import BackboneFiles


@dataclass(frozen=True)
class Workplace:
    """A WAN model on a device, a folder for runs and a cache of what its encoders said."""

    backbone: BackboneFiles
    runs: Path
    cache: TensorCache
    device: torch.device
    dtype: torch.dtype

    def contexts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Text context `T 4096` of each caption; the text encoder is loaded only for captions never seen
        before.
        """
        identity = self.backbone.fingerprint()["text"]
        with on_demand(lambda: self.backbone.load_text(self.dtype, self.device)) as text:

            def encode(caption: str) -> Tensor:
                key = {"text encoder": identity, "caption": caption}
                compute = lambda: {"context": text().encode([caption])[0].float().cpu()}  # noqa: E731
                return self.cache.get_or_compute("context", key, compute)["context"]

            return {caption: encode(caption) for caption in dict.fromkeys(captions)}

    def latents(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Latents `16 f h w` in model space of clips `F 3 H W` in [0, 1], each encoded by itself."""
        identity = self.vae_identity()
        with on_demand(lambda: self.backbone.load_codec(self.codec_dtype, self.device)) as codec:

            def encode(clip: Tensor) -> Tensor:
                key = {"vae": identity, "frames": content_hash(clip)}
                compute = lambda: {"latents": codec().encode(as_video(clip))[0].float().cpu()}  # noqa: E731
                return self.cache.get_or_compute("latents", key, compute)["latents"]

            return [encode(clip) for clip in clips]

    def spec(self) -> WanSpec:
        return self.backbone.spec()

    def base_identity(self) -> dict[str, str]:
        """See training_job.TrainingPlace."""
        return {"base": self.backbone.fingerprint()["transformer"], "dtype": str(self.dtype)}

    def vae_identity(self) -> str:
        return self.backbone.fingerprint()["vae"]

    def frozen_decoder(self, recompute: bool = False) -> FrozenDecoder:
        """The video VAE's decoder, for gradients through it (see streaming_decode for `recompute`)."""
        return FrozenDecoder.of(self.backbone.load_codec(self.codec_dtype, self.device).vae, recompute)

    @contextmanager
    def denoiser_for_training(self) -> Iterator[Denoiser]:
        """See training_job.TrainingPlace."""
        # Checkpointing a tiny model on the CPU only costs time; on a GPU memory is what is short.
        checkpoint = self.device.type != "cpu" or self.spec().dim > 512
        load = lambda: self.backbone.load_denoiser(self.dtype, self.device, checkpoint)  # noqa: E731
        with on_demand(load) as denoiser:
            yield denoiser()

    @property
    def codec_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else self.dtype


def as_video(frames: Tensor) -> Tensor:
    """Frames `F 3 H W` in [0, 1] to pixels `1 3 F H W` in [-1, 1]."""
    return (frames * 2 - 1).transpose(0, 1)[None]


def as_frames(pixels: Tensor) -> Tensor:
    """Pixels `3 F H W` in [-1, 1] to frames `F 3 H W` in [0, 1]."""
    return ((pixels + 1) / 2).clamp(0, 1).transpose(0, 1)
