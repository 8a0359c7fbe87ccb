"""The graph's MODEL as a frozen WAN DiT that LoRAs can be trained on (protocol: wan.interfaces.Denoiser).

Nothing is copied. LoRAs and frozen layers replace `forward` on instances, so that the names in the state
dict, other people's patches and the weights stay as they are, and everything is taken back at the end.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...smra_core.lora.adapter import replaced_forwards
from ...smra_core.wan.interfaces import Prediction
from ...smra_core.wan.spec import LATENT_CHANNELS, WanSpec, find_spec
from .frozen_linear import frozen_forward
from .inference_tensors import make_normal
from .versions import compute_dtype_of, is_dynamic, training_mode

log = logging.getLogger("smrabooth")

_SIZES = ("num_layers", "dim", "ffn_dim", "num_heads")


def spec_of(model) -> WanSpec:
    """Sizes of a MODEL. ValueError when it is not WAN 2.1's text-to-video DiT, with what to load instead."""
    dit = model.model.diffusion_model
    kind = type(dit).__name__
    if not all(hasattr(dit, name) for name in (*_SIZES, "patch_embedding", "blocks")):
        raise ValueError(f"This MODEL is {kind}, not WAN. Load Wan2.1-T2V-1.3B or 14B.")
    channels = dit.patch_embedding.weight.shape[1]
    if kind != "WanModel" or channels != LATENT_CHANNELS or getattr(dit, "img_emb", None) is not None:
        raise ValueError(
            f"This MODEL is {kind} with {channels} input channels: an image-to-video, VACE or control model. "
            f"The method needs text-to-video with {LATENT_CHANNELS} channels: load Wan2.1-T2V-1.3B or 14B."
        )
    return find_spec(*(getattr(dit, name) for name in _SIZES))


class HostDenoiser:
    """A loaded MODEL inside `training_denoiser`."""

    def __init__(self, patcher, spec: WanSpec, dtype: torch.dtype, memory_required: int = 0):
        self.patcher, self.spec, self.dtype = patcher, spec, dtype
        self.memory_required = memory_required
        self._token_block: int | None = None
        self._tokens: Tensor | None = None

    @property
    def dit(self) -> nn.Module:
        return self.patcher.model.diffusion_model

    def linears(self) -> dict[str, nn.Module]:
        return {name: self.dit.get_submodule(name) for name in self.spec.linear_names()}

    def velocity(
        self, noisy_latents: Tensor, sigma: Tensor, context: Tensor, token_block: int | None = None
    ) -> Prediction:
        """See wan.interfaces.Denoiser; the velocity comes back in the dtype of `noisy_latents`."""
        if token_block is not None and not 0 <= token_block < self.spec.blocks:
            raise ValueError(
                f"There is no block {token_block} to align; this model has 0 to {self.spec.blocks - 1}."
            )
        self._stay_loaded()
        timestep = self.patcher.get_model_object("model_sampling").timestep(sigma).float()
        self._token_block, self._tokens = token_block, None
        # Options of our own: the model's could bring kernels without a backward, or step-skipping wrappers.
        velocity = self.dit(
            noisy_latents.to(self.dtype),
            timestep,
            context=context.to(self.dtype),
            transformer_options={"optimized_attention_override": _differentiable_attention},
        )
        tokens, self._tokens = self._tokens, None
        return Prediction(velocity.to(noisy_latents.dtype), tokens)

    def forwards(self) -> dict[nn.Module, Callable]:
        """What each module of the DiT does while training."""
        frozen = {
            module: frozen_forward(module)
            for part in (*self.dit.blocks, self.dit.head)
            for module in part.modules()
            if hasattr(module, "comfy_cast_weights") and getattr(module, "weight", None) is not None
        }
        return frozen | {block: self._block(index, block) for index, block in enumerate(self.dit.blocks)}

    def _block(self, index: int, block: nn.Module) -> Callable[..., Tensor]:
        forward = block.forward

        def checkpointed(x: Tensor, *args, **kwargs) -> Tensor:
            if torch.is_grad_enabled():
                x = checkpoint(forward, x, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            else:
                x = forward(x, *args, **kwargs)
            if index == self._token_block:  # out here, as inside it would be taken twice and lose its graph
                self._tokens = x
            return x

        return checkpointed

    def _stay_loaded(self) -> None:
        """Another node or the host's own cleaning may have unloaded the model since the last step."""
        import comfy.model_management as management

        if not any(loaded.model is self.patcher for loaded in management.current_loaded_models):
            load(self.patcher, self.memory_required)


@contextmanager
def training_denoiser(model, memory_required: int = 0) -> Iterator[HostDenoiser]:
    """Load a MODEL for training; at the end, whatever happens, it is unloaded and as it was.

    Call outside of inference mode. `memory_required` is what activations need, in bytes: the host keeps as
    much free, and leaves weights in RAM if it must.
    """
    import comfy.model_management as management

    spec = spec_of(model)
    patcher = trainable_clone(model)
    make_normal(patcher.model)
    dtype = training_dtype(patcher.load_device)
    if compute_dtype_of(patcher.model) != dtype:
        patcher.set_model_compute_dtype(dtype)
    management.unload_all_models()
    try:
        load(patcher, memory_required)
        denoiser = HostDenoiser(patcher, spec, dtype, memory_required)
        with training_mode(), replaced_forwards(denoiser.forwards().items()):
            yield denoiser
    finally:
        management.unload_all_models()


def trainable_clone(model):
    """A patcher over the same weights, or, where those may vanish from the card at any time, over a plain
    copy of them read from the file.
    """
    if not is_dynamic(model):
        return model.clone()
    if getattr(model, "cached_patcher_init", None) is None:
        raise ValueError(
            "This MODEL's weights are streamed and its loader cannot load them again. Load the file with the "
            "host's own Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


def load(patcher, memory_required: int = 0) -> None:
    """Bring the weights onto the device, clean of other clones' patches, as normal tensors."""
    import comfy.model_management as management

    management.load_models_gpu([patcher], memory_required=memory_required)
    # Again, as loading may have put back weights that were kept aside in inference mode.
    make_normal(patcher.model)


def training_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the card multiplies it, else float32.

    Not float16, which the host itself prefers: small gradients vanish in it.
    """
    import comfy.model_management as management

    on_card = device.type != "cpu" and management.should_use_bf16(device)
    return torch.bfloat16 if on_card else torch.float32


def _differentiable_attention(chosen: Callable, *args, **kwargs) -> Tensor:
    """torch's own attention instead of the one that the host was started with (sage, flash, INT8)."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)
