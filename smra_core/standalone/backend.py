"""A WAN model loaded from files: device, folders, and a cache of encoded inputs."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..decoding.wan_decoder import WanVideoDecoder
from ..storage.on_demand import loaded_on_first_use
from ..storage.tensor_cache import TensorCache
from ..training.backend import describe_precision, encode_clips_once
from ..training.cost import count_sampling_bytes
from ..training.kept_blocks import measure_spare_memory
from ..training.memory import GIB, DitMemory
from ..training.ranks import ALONE, Ranks
from ..wan.condition import Condition
from ..wan.interfaces import Denoiser
from ..wan.latents import as_video
from ..wan.sampler import SamplingSettings
from ..wan.spec import I2V_CHANNELS, WanSpec
from .diffusers_wan import DiffusersDenoiser
from .image_condition import make_image_conditions
from .model_files import WanFiles
from .waiting_blocks import Placement, choose_placement, count_kept_bytes

log = logging.getLogger("smrabooth")


@dataclass(frozen=True)
class StandaloneBackend:
    """A WAN model loaded from files, as training needs it (protocol: training.backend.Backend)."""

    files: WanFiles
    runs: Path
    cache: TensorCache
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks = ALONE

    @property
    def spec(self) -> WanSpec:
        """Sizes of the DiT."""
        return self.files.spec

    @property
    def base_fingerprint(self) -> dict[str, str]:
        """Hash of the frozen DiT's weights, and the precision it computes in."""
        return {"base": self.files.transformer_fingerprint, "dtype": str(self.dtype)}

    @property
    def vae_fingerprint(self) -> str:
        """Hash of the VAE's weights."""
        return self.files.vae_fingerprint

    @property
    def codec_dtype(self) -> torch.dtype:
        """Precision of the video VAE: float32 on a CPU, that of the DiT on other devices."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def weights(self) -> DitMemory:
        """See Backend; read from the file's header."""
        return count_kept_bytes(self.spec, self.dtype.itemsize, self.files.share_of_8_bits)

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """See Backend; the text encoder is loaded only for captions that are not in the cache."""
        fingerprint = self.files.text_fingerprint
        with loaded_on_first_use(partial(self.files.load_text, self.dtype, self.device)) as text:

            def encode(caption: str) -> Tensor:
                def compute() -> dict[str, Tensor]:
                    return {"context": text().encode([caption])[0].float().cpu()}

                key = {"text encoder": fingerprint, "caption": caption, **describe_precision(self.dtype)}
                return self.cache.get_or_compute("context", key, compute)["context"]

            return {caption: encode(caption) for caption in dict.fromkeys(captions)}

    def encode_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """See Backend; the VAE is loaded only for clips that are not in the cache."""
        with loaded_on_first_use(partial(self.files.load_codec, self.codec_dtype, self.device)) as codec:

            def encode(clip: Tensor) -> Tensor:
                return codec().encode(as_video(clip))[0].float().cpu()

            return encode_clips_once(self.cache, self.vae_fingerprint, self.codec_dtype, clips, encode)

    def make_conditions(self, clips: Sequence[Tensor]) -> list[Condition]:
        """See Backend."""
        if self.spec.input_channels != I2V_CHANNELS:
            return [Condition()] * len(clips)
        return make_image_conditions(clips, self.spec.latents, self.encode_clips)

    def load_decoder(self, recompute: bool = False) -> WanVideoDecoder:
        """See Backend."""
        return WanVideoDecoder.of(self.files.load_codec(self.codec_dtype, self.device).vae, recompute)

    @contextmanager
    def denoiser_for_training(self, step_bytes: float = 0.0) -> Iterator[Denoiser]:
        """See Backend; on a card, blocks that do not fit beside a step wait in host memory."""
        with self._loaded_beside(step_bytes, checkpoint=True) as get_denoiser:
            yield get_denoiser()

    def denoiser_for_sampling(
        self, settings: SamplingSettings, batch: int
    ) -> AbstractContextManager[Callable[[], Denoiser]]:
        """Load the DiT to evaluate it on so many videos at once; a function returns it inside a with block.

        On a card, blocks that do not fit beside the videos wait in host memory, as in training. Keep no
        reference to the DiT, or it is not freed at the end of the block.
        """
        tokens = self.spec.latents.count_tokens(settings.frames, settings.width, settings.height)
        return self._loaded_beside(count_sampling_bytes(self.spec, tokens, batch, self.dtype.itemsize))

    @contextmanager
    def _loaded_beside(
        self, needed: float, checkpoint: bool = False
    ) -> Iterator[Callable[[], DiffusersDenoiser]]:
        """Load the DiT beside activations of so many bytes, and free it at the end of the block."""
        placement = Placement()
        if self.device.type == "cuda":
            placement = self.choose_placement(measure_spare_memory(self.device, needed))
        load = partial(self.files.load_denoiser, self.dtype, self.device, checkpoint, placement)
        with loaded_on_first_use(load) as get_denoiser:
            get_denoiser()
            try:
                yield get_denoiser
            finally:
                get_denoiser().close()

    def choose_placement(self, spare: float) -> Placement:
        """Return where the DiT's weights go if they may take so many bytes, and log what is not as usual."""
        share = self.files.share_of_8_bits
        placement = choose_placement(self.spec, spare, self.dtype.itemsize, share)
        if placement.keeps_form:
            log.info("The DiT's weights of 8 bits stay as they are in the file, because memory is short.")
        if placement.resident is not None:
            log.info(
                "%d of %d blocks stay on the device, where %.1f GiB are left for weights; the others wait in "
                "host memory.", placement.resident, self.spec.blocks, max(0.0, spare) / GIB,
            )  # fmt: skip
        return placement
