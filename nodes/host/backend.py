"""Where a job trains inside the graph: on its MODEL and VAE, with runs and caches in the output folder.

It stands where workplace.Workplace stands when there is no graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ...smra_core.decoding.wan_decoder import FrozenDecoder
from ...smra_core.storage.tensor_cache import TensorCache, content_hash
from ...smra_core.wan.spec import WanSpec
from .denoiser import HostDenoiser, spec_of, training_denoiser, training_dtype
from .model_identity import model_identity, vae_identity
from .vae import check_vae, encode, frozen_decoder


class GraphPlace:
    """See training_job.TrainingPlace; made outside of inference mode."""

    def __init__(self, model, vae, contexts: Mapping[str, Tensor], memory_required: int = 0):
        """`contexts` holds the text context `T 4096` of each caption; `memory_required` is that of a step's
        activations, in bytes.
        """
        check_vae(vae)
        self.model, self.vae, self._spec = model, vae, spec_of(model)
        self._contexts, self.memory_required = contexts, memory_required
        self.device = model.load_device
        self.runs, self.cache = output_folder("runs"), TensorCache(output_folder("cache"))
        self.denoiser: HostDenoiser | None = None
        """While a job trains."""

    def spec(self) -> WanSpec:
        return self._spec

    def base_identity(self) -> dict[str, str]:
        return {"base": model_identity(self.model), "dtype": str(training_dtype(self.device))}

    def vae_identity(self) -> str:
        return vae_identity(self.vae)

    def contexts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {caption: self._contexts[caption] for caption in captions}

    def latents(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Latents `16 f h w` in model space of clips `F 3 H W` in [0, 1], each encoded by itself."""
        own = self.vae_identity()

        def latents_of(clip: Tensor) -> Tensor:
            key = {"vae": own, "frames": content_hash(clip)}
            compute = lambda: {"latents": encode(self.vae, self.model, clip)}  # noqa: E731
            return self.cache.get_or_compute("latents", key, compute)["latents"]

        return [latents_of(clip) for clip in clips]

    def frozen_decoder(self, recompute: bool = False) -> FrozenDecoder:
        return frozen_decoder(self.vae, self.device, recompute)

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
