"""A MODEL of the graph as a frozen WAN DiT that LoRAs can be trained on (protocol: wan.interfaces.Denoiser).

Nothing is copied. LoRAs and frozen layers replace `forward` on instances, so that the names in the state
dict, the patches of other nodes and the weights stay as they are. Every replacement is undone at the end.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...smra_core.lora.adapter import replaced_forwards
from ...smra_core.wan.block_stream import ROOMS
from ...smra_core.wan.condition import IMAGE_CHANNELS, NO_INPUTS, ExtraInputs, move_inputs
from ...smra_core.wan.feed_forward import ChunkedForward
from ...smra_core.wan.host_inputs import HostInputs
from ...smra_core.wan.interfaces import Prediction
from ...smra_core.wan.recompute import KeptBlocks
from ...smra_core.wan.spec import LATENT_SPACES, WanSpec, find_spec, token_grid
from .frozen_linear import freeze_forward, freeze_on_gradient, has_own_forward
from .inference_tensors import make_normal
from .model_patches import read_plain_options
from .offloaded_layers import OffloadedLayers
from .versions import compute_dtype_of, is_dynamic, training_mode

log = logging.getLogger("smrabooth")

_SIZES = ("num_layers", "dim", "ffn_dim", "num_heads")


def read_spec(model) -> WanSpec:
    """Return the sizes of a MODEL.

    Raises ValueError, with what to load instead, unless it is a WAN that predicts the velocity of latents of
    one of WAN's two VAEs. What its variant takes besides is asked of the MODEL (see extra_inputs).
    """
    dit = model.model.diffusion_model
    kind = type(dit).__name__
    if not all(hasattr(dit, name) for name in (*_SIZES, "patch_embedding", "blocks", "out_dim")):
        raise ValueError(f"This MODEL is {kind}, not WAN. Load Wan2.1-T2V-1.3B or 14B.")
    if dit.out_dim not in LATENT_SPACES:
        raise ValueError(
            f"This MODEL is {kind} with latents of {dit.out_dim} channels. The method needs those of one of "
            f"WAN's VAEs, of {' or '.join(map(str, LATENT_SPACES))}: load a WAN of 1.3B, 14B or 5B."
        )
    _check_prediction(model.model, kind)
    channels = dit.patch_embedding.weight.shape[1]
    spec = find_spec(*(getattr(dit, name) for name in _SIZES), LATENT_SPACES[dit.out_dim])
    has_own_latents_alone = kind == "WanModel" and channels == spec.latents.channels
    return spec if has_own_latents_alone else spec.as_variant(kind, channels)


def _check_prediction(model, kind: str) -> None:
    """Raise ValueError unless the model turns noise into a video along straight paths, all frames at once."""
    flow = getattr(model.model_type, "name", model.model_type)
    if flow != "FLOW":
        raise ValueError(
            f"This MODEL is {type(model).__name__} ({flow}): it does not start from noise, and the losses "
            "are those of a model that does. Load a WAN that generates videos."
        )
    if kind == "CausalWanModel":
        raise ValueError(
            "This MODEL is CausalWanModel: it makes a video part by part, each from the finished parts "
            "before it, and a training step would show it all parts at once. Load a WAN that makes whole "
            "videos, such as Wan2.1-T2V-1.3B, and apply the LoRA to this one."
        )


class HostDenoiser:
    """A MODEL that is loaded for training, inside `training_denoiser`."""

    def __init__(self, patcher, spec: WanSpec, dtype: torch.dtype, memory_required: int = 0):
        self.patcher, self.spec, self.dtype = patcher, spec, dtype
        self.memory_required = memory_required
        self.kept_blocks = KeptBlocks()
        self._offloaded = OffloadedLayers([_list_own_layers(block) for block in self.dit.blocks])
        self._host_inputs = HostInputs(patcher.load_device)
        self._token_block: int | None = None
        self._tokens: Tensor | None = None

    @property
    def dit(self) -> nn.Module:
        """ComfyUI's module of the DiT."""
        return self.patcher.model.diffusion_model

    def linears(self) -> dict[str, nn.Module]:
        """Return the linears that can carry a LoRA, by native name."""
        return {name: self.dit.get_submodule(name) for name in self.spec.linear_names()}

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        context: Tensor,
        token_block: int | None = None,
        extra: ExtraInputs = NO_INPUTS,
    ) -> Prediction:
        """Return the predicted velocity, in the dtype of `noisy_latents` (see wan.interfaces.Denoiser)."""
        if token_block is not None and not 0 <= token_block < self.spec.blocks:
            raise ValueError(
                f"There is no block {token_block} to align; this model has 0 to {self.spec.blocks - 1}."
            )
        self._reload_if_needed()
        timestep = self.patcher.get_model_object("model_sampling").timestep(sigma).float()
        self._token_block, self._tokens = token_block, None
        # Not all of the model's own options, which could bring kernels without a backward, or skip steps.
        options = read_plain_options(self.patcher)
        inputs = move_inputs(extra, noisy_latents.device, self.dtype)
        latents = noisy_latents.to(self.dtype)
        if IMAGE_CHANNELS in inputs:
            latents = torch.cat([latents, inputs.pop(IMAGE_CHANNELS)], 1)
        timestep = self.patcher.model.process_timestep(timestep, x=latents, **inputs)
        velocity = self.dit(
            latents,
            timestep,
            context=context.to(self.dtype),
            transformer_options=options | {"optimized_attention_override": _compute_attention},
            **inputs,
        )
        tokens, self._tokens = self._tokens, None
        if tokens is not None:
            tokens = self._take_own_tokens(tokens, token_grid(noisy_latents.shape), extra)
        return Prediction(velocity.to(noisy_latents.dtype), tokens)

    def _take_own_tokens(self, tokens: Tensor, grid: tuple[int, int, int], extra: ExtraInputs) -> Tensor:
        """Return the tokens of the latents alone, without those of a reference image before them.

        Raises ValueError where other tokens are among them.
        """
        own = math.prod(grid)
        if tokens.shape[1] == own:
            return tokens
        before = math.prod(grid[1:]) if getattr(self.dit, "ref_conv", None) is not None else 0
        if "reference_latent" in extra and tokens.shape[1] == before + own:
            return tokens[:, before:]
        raise ValueError(
            f"A block of this MODEL ({type(self.dit).__name__}) has {tokens.shape[1]} tokens for a picture "
            f"of {own}: those of 'positive' are among them, and SuRA cannot tell them apart. Set sura_weight "
            "to 0, or connect the prompt from before the node that added a reference."
        )

    def make_forwards(self) -> dict[nn.Module, Callable]:
        """Return the forwards of frozen layers and checkpointed blocks, which the DiT has in training.

        Layers around the blocks (embeddings, adapters of a variant) are frozen where a gradient reaches them.
        """
        around = {module: freeze_on_gradient(module, self._offloaded) for module in _list_layers(self.dit)}
        # Other kinds of blocks may go on with the last linear's output.
        plain = [block for block in self.dit.blocks if type(block).__name__ == "WanAttentionBlock"]
        last = {id(block.ffn[-1]) for block in plain}
        inside = {
            module: freeze_forward(module, self._offloaded, ends_block=id(module) in last)
            for part in (*self.dit.blocks, self.dit.head)
            for module in _list_layers(part)
        }
        nets = {block.ffn: _split_into_chunks(block.ffn) for block in plain if has_own_forward(block.ffn)}
        blocks = {block: self._wrap_block(index, block) for index, block in enumerate(self.dit.blocks)}
        return around | inside | nets | blocks

    def _wrap_block(self, index: int, block: nn.Module) -> Callable[..., Tensor]:
        forward, following = block.forward, len(self.dit.blocks) - 1 - index

        def run_block(x: Tensor, *args, **kwargs) -> Tensor:
            if torch.is_grad_enabled():
                x = self.kept_blocks.run(following, self._host_inputs, forward, x, *args, **kwargs)
            else:
                x = forward(x, *args, **kwargs)
            # Outside of the checkpoint, inside of which it would be taken twice and lose its graph.
            if index == self._token_block:
                self._tokens = x
            return x

        return run_block

    def load(self) -> None:
        """Load the weights; room is left for a step's activations and for the blocks that are moved."""
        self._offloaded.close()
        load(self.patcher, self.memory_required + self._count_room_bytes())
        self._offloaded.open(self.patcher.load_device)

    def close(self) -> None:
        """Give the memory for what is moved back."""
        self._offloaded.close()
        self._host_inputs.close()

    def _count_room_bytes(self) -> int:
        """Return the bytes that blocks are moved into: none where all weights have room on the device."""
        import comfy.model_management as management

        size = self.patcher.model_size()
        if size + self.memory_required <= management.get_free_memory(self.patcher.load_device):
            return 0
        return ROOMS * size // self.spec.blocks

    def _reload_if_needed(self) -> None:
        """Load the model again if another node or ComfyUI itself has unloaded it since the last step."""
        import comfy.model_management as management

        if not any(loaded.model is self.patcher for loaded in management.current_loaded_models):
            self.load()


def _list_layers(part: nn.Module) -> list[nn.Module]:
    """Return the layers of a part whose weights ComfyUI casts when they are used."""
    return [
        module
        for module in part.modules()
        if hasattr(module, "comfy_cast_weights") and getattr(module, "weight", None) is not None
    ]


def _split_into_chunks(net: nn.Module) -> ChunkedForward:
    return ChunkedForward(net.forward, [net[0], net[-1]])


def _list_own_layers(part: nn.Module) -> list[nn.Module]:
    """Return the layers whose forward no other node has replaced."""
    return [layer for layer in _list_layers(part) if has_own_forward(layer)]


@contextmanager
def training_denoiser(model, memory_required: int = 0) -> Iterator[HostDenoiser]:
    """Load a MODEL for training; at the end, whatever happens, it is unloaded and unchanged.

    Call outside of inference mode. `memory_required` is the number of bytes that activations need: ComfyUI
    keeps as much free, and leaves weights in RAM if it must.
    """
    import comfy.model_management as management

    spec = read_spec(model)
    patcher = prepare_clone(model)
    make_normal(patcher.model)
    dtype = choose_training_dtype(patcher.load_device)
    if compute_dtype_of(patcher.model) != dtype:
        patcher.set_model_compute_dtype(dtype)
    management.unload_all_models()
    denoiser = HostDenoiser(patcher, spec, dtype, memory_required)
    try:
        denoiser.load()
        with training_mode(), replaced_forwards(denoiser.make_forwards().items()):
            yield denoiser
    finally:
        denoiser.close()
        management.unload_all_models()


def prepare_clone(model):
    """Return a patcher over the same weights or, where those may vanish from the card at any time, over a
    plain copy of them, read from the file. Raises ValueError when the loader cannot read the file again.
    """
    if not is_dynamic(model):
        return model.clone()
    if getattr(model, "cached_patcher_init", None) is None:
        raise ValueError(
            "This MODEL's weights are streamed and its loader cannot load them again. Load the file with the "
            "ComfyUI's own Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


def load(patcher, memory_required: int = 0) -> None:
    """Load the weights onto the device as normal tensors, without the patches of other clones."""
    import comfy.model_management as management

    management.load_models_gpu([patcher], memory_required=memory_required)
    # A second time, because loading may have restored weights that were saved in inference mode.
    make_normal(patcher.model)


def choose_training_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype to train in: bfloat16 where the card computes in it, else float32.

    ComfyUI itself prefers float16, in which small gradients vanish.
    """
    import comfy.model_management as management

    on_card = device.type != "cpu" and management.should_use_bf16(device)
    return torch.bfloat16 if on_card else torch.float32


def _compute_attention(chosen: Callable, *args, **kwargs) -> Tensor:
    """Compute attention with torch's own kernel, which has a backward, instead of the one that ComfyUI was
    started with (sage, flash, INT8).
    """
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)
