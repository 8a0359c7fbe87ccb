"""The memory that a training run takes on its device, by part, told before anything is loaded.

Weights are counted from the model's sizes or, where its file is known, by the bytes in the file: a weight of
fp8 or INT8 takes one byte. Activations are those of `cost` and `decode_choice`. On an NVIDIA H200 the told
sum was within 6 % of the measured peak for every way to decode (tests/benchmarks/README.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..wan.block_stream import ROOMS
from ..wan.spec import TEXT_DIM, WanSpec
from .cost import (
    count_activation_bytes,
    count_input_bytes,
    count_lora_parameters,
    count_projector_parameters,
)
from .decode_memory import DecodeChoice
from .decoder_sizes import DECODERS
from .motion_settings import MotionSettings
from .sura import SubjectSettings

GIB = 2**30
_HALF, _FLOAT = 2, 4
"""Bytes of a value in half precision, and in float32."""
_FREQUENCIES = 256
"""Values in which a DiT is given the noise level."""
FLOW_NET_BYTES = 79_000_000
"""Bytes of SEA-RAFT M, in float32."""
CONTEXT_BYTES, WORKSPACE_BYTES = 810_000_000, 300_000_000
"""Bytes of the CUDA context with its kernels, and of the workspaces of convolutions, measured on an H200."""
WIDEST_FEATURES = 1536
"""Width of the features of DINOv2's ViT-g, assumed because the file is not read before it is needed."""
_GAPS = 0.3
"""Share of the activations that must be free besides them, because the pieces of torch's allocator never fit
without gaps (up to 1.6 GB on an H200), and because the estimate is good to 6 %.
"""
_DESKTOP_BYTES = 500_000_000
"""Bytes of a card that its desktop takes."""


@dataclass(frozen=True)
class MemoryAccount:
    """Bytes on the device at the peak of a training step, by part, and in host memory."""

    weights: int
    """Frozen weights of the DiT that stay on the device."""
    streamed: int
    """Weights of the blocks at work, where they come from host memory; 0 if all stay on the device."""
    activations: int
    """Tensors that a step keeps and computes, those of decoder and flow net too."""
    lora: int
    """Trained parameters and their gradients, float32: the LoRA, and SuRA's projector."""
    optimizer: int
    """AdamW's two moments of each parameter."""
    decoder: int
    """Weights of the video VAE's decoder."""
    flow_net: int
    """Weights of SEA-RAFT."""
    context: int
    """What CUDA and its libraries take for themselves."""
    host: int = 0
    """What waits in host memory: weights of blocks, and inputs of blocks. It is no part of the sum."""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part on the device."""
        return {name: size for name, size in vars(self).items() if name != "host"}

    @property
    def total(self) -> int:
        """Sum of the parts on the device."""
        return sum(self.parts.values())

    def fits(self, memory: float) -> bool:
        """Return whether a card of so many bytes holds the sum, with room for gaps and for a desktop."""
        return self.total + _GAPS * self.activations + _DESKTOP_BYTES <= memory

    def describe(self) -> str:
        """Return the sum and its parts in a line, the parts that are nothing left out."""
        parts = ", ".join(
            f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in self.parts.items() if size
        )
        host = f", and {self.host / GIB:.1f} GiB of host memory" if self.host else ""
        return f"{self.total / GIB:.1f} GiB ({parts}){host}"


def count_block_bytes(spec: WanSpec, value_bytes: float = _HALF) -> int:
    """Return the bytes of one block's weights."""
    linears = 8 * (spec.dim**2 + spec.dim) + 2 * spec.dim * spec.ffn + spec.ffn + spec.dim
    norms_and_modulation = (4 + 2 + 6) * spec.dim
    return round((linears + norms_and_modulation) * value_bytes)


def count_other_bytes(spec: WanSpec) -> int:
    """Return the bytes of the DiT's embeddings and head in half precision."""
    patch = 4 * spec.latents.channels
    inputs = (patch + 1) * spec.dim + (TEXT_DIM + 1) * spec.dim + (_FREQUENCIES + 1) * spec.dim
    inner = 2 * (spec.dim + 1) * spec.dim + 6 * (spec.dim + 1) * spec.dim
    head = (spec.dim + 1) * patch + 2 * spec.dim
    return _HALF * (inputs + inner + head)


def count_model_bytes(spec: WanSpec) -> int:
    """Return the bytes of a DiT in half precision."""
    return spec.blocks * count_block_bytes(spec) + count_other_bytes(spec)


@dataclass(frozen=True)
class DitMemory:
    """How the DiT's weights, and what its blocks keep, are divided between the device and host memory."""

    model_bytes: int
    """Bytes of the DiT in the form that it is kept in: those of its file, or of half precision."""
    resident: int | None = None
    """Number of blocks that stay on the device; the others wait in host memory. None is all."""
    can_wait: bool = False
    """Whether blocks may wait in host memory where they do not all fit."""

    inputs_wait: bool = False
    """Whether the inputs of recomputed blocks wait in host memory, all but those of the block at work and of
    the next.
    """
    restored_bytes: int | None = None
    """Bytes of the DiT where its weights of 8 bits are restored when it is loaded, as is done where all of
    it fits then; None where they stay as they are in any case, or there are none.
    """

    def list_ways(self) -> list["DitMemory"]:
        """Return this way and, if blocks can wait, the one with all of their weights in host memory, and the
        one with their inputs there, too.
        """
        return [self, replace(self, resident=0), self.take_least()] if self.can_wait else [self]

    def restore(self) -> "DitMemory":
        """Return the way with all weights restored, and on the device."""
        return DitMemory(self.restored_bytes or self.model_bytes)

    def take_least(self) -> "DitMemory":
        """Return the way that takes the least of the device."""
        return replace(self, resident=0, inputs_wait=True)


def estimate_subject_memory(
    spec: WanSpec,
    settings: SubjectSettings,
    dit: DitMemory,
    batch_size: int = 1,
    value_bytes: int = _HALF,
    frames: int = 1,
) -> MemoryAccount:
    """Return the account of a subject LoRA's step on samples of so many frames; DINOv2 is freed before
    training starts.

    A value of the activations takes `value_bytes`.
    """
    tokens = spec.latents.count_tokens(frames, settings.width, settings.height)
    trained = _count_trained(spec, settings)
    if settings.sura_weight:
        trained += count_projector_parameters(spec.dim, WIDEST_FEATURES, settings.projector_width)
    activations = count_activation_bytes(spec, tokens, batch_size, value_bytes)
    inputs = _count_waiting_bytes(spec, dit, tokens, batch_size, value_bytes)
    return _make_account(spec, dit, activations, inputs, trained)


def estimate_motion_memory(
    spec: WanSpec,
    settings: MotionSettings,
    choice: DecodeChoice,
    dit: DitMemory,
    batch_size: int = 1,
    value_bytes: int = _HALF,
) -> MemoryAccount:
    """Return the account of a motion LoRA's step that decodes by `choice`."""
    tokens = spec.latents.count_tokens(settings.frames, settings.width, settings.height)
    activations = count_activation_bytes(spec, tokens, batch_size, value_bytes)
    decoder = flow_net = 0
    if settings.mora_weight:
        # The estimate is for one sample in half precision.
        activations = round(choice.bytes * batch_size * value_bytes / _HALF)
        decoder = (
            0 if choice.decode == "tiny" else round(DECODERS[spec.latents].weights * value_bytes / _HALF)
        )
        flow_net = FLOW_NET_BYTES
    inputs = _count_waiting_bytes(spec, dit, tokens, batch_size, value_bytes)
    trained = _count_trained(spec, settings)
    return _make_account(spec, dit, activations, inputs, trained, decoder, flow_net)


def _count_waiting_bytes(spec: WanSpec, dit: DitMemory, tokens: int, batch: int, value_bytes: int) -> int:
    """Return the bytes of the blocks' inputs that wait in host memory."""
    waiting = max(0, spec.blocks - ROOMS) if dit.inputs_wait else 0
    return waiting * count_input_bytes(spec, tokens, batch, value_bytes)


def _make_account(
    spec: WanSpec,
    dit: DitMemory,
    activations: int,
    inputs: int,
    trained: int,
    decoder: int = 0,
    flow_net: int = 0,
) -> MemoryAccount:
    other = min(count_other_bytes(spec), dit.model_bytes)
    block = (dit.model_bytes - other) / spec.blocks
    kept = spec.blocks if dit.resident is None else min(dit.resident, spec.blocks)
    waiting = spec.blocks - kept
    return MemoryAccount(
        weights=round(other + kept * block),
        streamed=round(min(waiting, ROOMS) * block),
        activations=activations - inputs,
        lora=2 * _FLOAT * trained,
        optimizer=2 * _FLOAT * trained,
        decoder=decoder,
        flow_net=flow_net,
        context=CONTEXT_BYTES + WORKSPACE_BYTES,
        host=round(waiting * block) + inputs,
    )


def _count_trained(spec: WanSpec, settings: SubjectSettings | MotionSettings) -> int:
    names = settings.plan.select(spec.linear_names())
    return count_lora_parameters(spec, names, settings.rank)


def choose_resident_blocks(spec: WanSpec, account_of: Callable[[int], MemoryAccount], memory: float) -> int:
    """Return the largest number of blocks that can stay on the device, from 0 to all of them.

    `account_of` returns the account with so many resident blocks. The result is 0 where nothing fits, too.
    """
    fitting = (number for number in range(spec.blocks, 0, -1) if account_of(number).fits(memory))
    return next(fitting, 0)
