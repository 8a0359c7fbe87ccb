"""The MODEL and VAE of a graph as a training backend, with runs and cache in the output folder.

The ComfyUI counterpart of smra_core.standalone.backend.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from ...smra_core.decoding.wan_decoder import WanVideoDecoder
from ...smra_core.lora.plan import SparsePlan
from ...smra_core.storage.tensor_cache import TensorCache
from ...smra_core.training.backend import encode_clips_once
from ...smra_core.training.memory import DitMemory
from ...smra_core.training.ranks import ALONE
from ...smra_core.wan.condition import Condition
from .denoiser import HostDenoiser, choose_training_dtype, read_spec, training_denoiser
from .extra_inputs import check_shared_images, make_condition
from .model_identity import fingerprint_model, fingerprint_vae
from .model_patches import check_patches
from .trial_step import check_training_step
from .vae import check_vae, encode, load_decoder


class ComfyBackend:
    """The MODEL and VAE of a graph (training.backend.Backend). Create it outside of inference mode."""

    def __init__(self, model, vae, contexts: Mapping[str, Tensor], memory_required: int = 0):
        """Wrap a MODEL and a VAE. Raises ValueError unless they are WAN's and belong together, and for
        patches of the MODEL that cannot be trained with.

        `contexts` holds the text context `T 4096` of each caption; `memory_required` is the number of bytes
        that a step's activations need.
        """
        self.model, self.vae, self.spec = model, vae, read_spec(model)
        check_vae(vae, self.spec.latents)
        self.notes = check_patches(model)
        """Sentences on what of the MODEL takes no part in training."""
        self._contexts, self.memory_required = contexts, memory_required
        self.conditions: list[Condition] = []
        """What the DiT takes of each sample besides its text (see `read_conditions`)."""
        self.device = model.load_device
        self.dtype = choose_training_dtype(self.device)
        self.runs, self.cache = find_output_folder("runs"), TensorCache(find_output_folder("cache"))
        self.ranks = ALONE
        self.denoiser: HostDenoiser | None = None
        """Loaded DiT while a job trains, else None."""

    @property
    def weights(self) -> DitMemory:
        """How the DiT's weights are kept (see Backend); ComfyUI leaves in RAM what does not fit."""
        return DitMemory(self.model.model_size(), can_wait=True)

    @property
    def base_fingerprint(self) -> dict[str, str]:
        """What identifies the frozen DiT and how it computes (see Backend)."""
        return {"base": fingerprint_model(self.model), "dtype": str(self.dtype)}

    @property
    def vae_fingerprint(self) -> str:
        """Hash that identifies the VAE's weights."""
        return fingerprint_vae(self.vae)

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the contexts that the graph's text encoder has made already (see Backend)."""
        return {caption: self._contexts[caption] for caption in captions}

    def encode_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the latents of each clip, in model space (see Backend)."""
        encode_clip = partial(encode, self.vae, self.model)
        vae_dtype = self.vae.vae_dtype
        return encode_clips_once(self.cache, self.vae_fingerprint, vae_dtype, clips, encode_clip)

    def read_conditions(
        self, captions: Sequence[str], options: Sequence[Mapping], shapes: Sequence[Sequence[int]]
    ) -> None:
        """Ask the MODEL what it makes of the graph's conditioning, for samples with latents of these shapes.

        A shape is `C f h w`. `options` stand beside the prompt of each sample in its CONDITIONING. What the
        user should know is added to `notes`. Raises ValueError for images that do not fit the samples.
        """
        check_shared_images(options, shapes)
        made = [
            make_condition(self.model, values, self._contexts[caption], shape)
            for caption, values, shape in zip(captions, options, shapes, strict=True)
        ]
        self.conditions = [condition for condition, _ in made]
        self.notes += dict.fromkeys(note for _, notes in made for note in notes)

    def check_training_step(
        self, plan: SparsePlan, caption: str, shape: Sequence[int], token_block: int | None = None
    ) -> None:
        """Raise ValueError if the MODEL cannot be trained (see `trial_step.check_training_step`).

        `caption` and `shape`, of latents `C f h w`, are those of the first sample.
        """
        inputs = self.conditions[0].inputs
        check_training_step(self.model, plan, self._contexts[caption], shape, inputs, token_block)

    def make_conditions(self, clips: Sequence[Tensor]) -> list[Condition]:
        """Return what `read_conditions` has read (see Backend).

        There are more clips than it read for where there are copies in other colors. Raises ValueError then
        if the model takes images, because the graph has none in these colors.
        """
        if len(clips) == len(self.conditions):
            return self.conditions
        if any(condition.inputs for condition in self.conditions):
            raise ValueError(
                "color_copies needs an image in the colors of each copy, and this model takes the image or "
                "video of 'positive', which has the clip's. Set color_copies to 0 in SMRA Training Options. "
                "On the command line, train-motion makes the images of an image-to-video model itself."
            )
        return [Condition()] * len(clips)

    def load_decoder(self, recompute: bool = False) -> WanVideoDecoder:
        """Copy the VAE's decoder for gradients through it (see Backend)."""
        return load_decoder(self.vae, self.device, recompute)

    @contextmanager
    def denoiser_for_training(self, step_bytes: float = 0.0) -> Iterator[HostDenoiser]:
        """Load the DiT for the duration of a with block; ComfyUI leaves `memory_required` to a step."""
        with training_denoiser(self.model, self.memory_required) as self.denoiser:
            try:
                yield self.denoiser
            finally:
                self.denoiser = None


def find_output_folder(part: str) -> Path:
    """Return the pack's folder for runs or for caches, inside ComfyUI's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "smra" / part
