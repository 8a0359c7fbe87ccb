"""The graph's MODEL and VAE as what training needs, with runs and cache in the output folder.

The ComfyUI counterpart of smra_core.standalone.backend.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from ...smra_core.decoding.wan_decoder import WanVideoDecoder
from ...smra_core.storage.tensor_cache import TensorCache
from ...smra_core.training.backend import encode_clips_once
from .denoiser import HostDenoiser, spec_of, training_denoiser, training_dtype
from .model_identity import fingerprint_model, fingerprint_vae
from .vae import check_vae, encode, load_decoder


class ComfyBackend:
    """The MODEL and VAE of a graph (training.backend.Backend). Create it outside of inference mode."""

    def __init__(self, model, vae, contexts: Mapping[str, Tensor], memory_required: int = 0):
        """`contexts` holds the text context `T 4096` of each caption; `memory_required` is that of a step's
        activations, in bytes.
        """
        check_vae(vae)
        self.model, self.vae, self.spec = model, vae, spec_of(model)
        self._contexts, self.memory_required = contexts, memory_required
        self.device = model.load_device
        self.runs, self.cache = output_folder("runs"), TensorCache(output_folder("cache"))
        self.denoiser: HostDenoiser | None = None
        """The loaded DiT while a job trains, else None."""

    @property
    def base_fingerprint(self) -> dict[str, str]:
        return {"base": fingerprint_model(self.model), "dtype": str(training_dtype(self.device))}

    @property
    def vae_fingerprint(self) -> str:
        return fingerprint_vae(self.vae)

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """See Backend; the graph's text encoder has made the contexts already."""
        return {caption: self._contexts[caption] for caption in captions}

    def encode_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """See Backend."""
        encode_clip = partial(encode, self.vae, self.model)
        return encode_clips_once(self.cache, self.vae_fingerprint, clips, encode_clip)

    def load_decoder(self, recompute: bool = False) -> WanVideoDecoder:
        """See Backend."""
        return load_decoder(self.vae, self.device, recompute)

    @contextmanager
    def denoiser_for_training(self) -> Iterator[HostDenoiser]:
        with training_denoiser(self.model, self.memory_required) as self.denoiser:
            try:
                yield self.denoiser
            finally:
                self.denoiser = None


def output_folder(part: str) -> Path:
    """Our folder for runs or caches, beside the host's own outputs."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "smra" / part
