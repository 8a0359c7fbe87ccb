"""DiTs whose weights are in 16 bits, fp8 or INT8, on the card or waiting in host memory in two ways."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from smra_core.standalone.checkpoint_weights import GROUP, SCALE
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.wan.block_stream import pack
from smra_core.wan.pinned_memory import PinnedPieces
from smra_core.wan.spec import WanSpec, parse_linear
from smra_core.wan.stored_form import can_rotate
from tests.benchmarks.gpu.models import make_dit
from tests.benchmarks.gpu.pack_without_comfyui import empty_comfyui, import_file

HALF, FP8, INT8 = "16 bit", "fp8", "INT8"
LARGEST = {FP8: (torch.float8_e4m3fn, 448.0), INT8: (torch.int8, 127.0)}
"""Dtype of each form of 8 bits, and its largest number."""
GROUPS = (256, 16)
"""Inputs that INT8 files rotate together, and fewer for tiny models."""


def store_as(linear: nn.Linear, form: str) -> None:
    """Keep a linear's weight as a file of this form does."""
    if form == HALF:
        return
    (dtype, largest), weight = LARGEST[form], linear.weight.detach().float()
    # Newer INT8 files have a scale for each output, and rotate the inputs.
    scale = weight.abs().amax(1, keepdim=True) / largest if form == INT8 else weight.abs().max() / largest
    stored = weight / scale
    linear.weight = nn.Parameter((stored.round() if form == INT8 else stored).to(dtype), requires_grad=False)
    linear.register_buffer(SCALE, scale, persistent=False)
    if form == INT8:
        setattr(linear, GROUP, next(group for group in GROUPS if can_rotate(weight.shape[1], group)))


def make_stored_denoiser(
    spec: WanSpec, dtype: torch.dtype, device: torch.device, form: str, resident: int | None
) -> DiffusersDenoiser:
    """Make a frozen DiT whose blocks are recomputed, with weights of this form and so many resident
    blocks.
    """
    dit = make_dit(spec, dtype, device)
    for module in dit.blocks.modules():
        if isinstance(module, nn.Linear):
            store_as(module, form)
    return DiffusersDenoiser(dit, True, device, resident)


@contextmanager
def left_in_ram(denoiser: DiffusersDenoiser, device: torch.device) -> Iterator[None]:
    """Let all blocks' linears wait in host memory as those do that ComfyUI leaves there.

    The pack's code for it is run, without ComfyUI's casts and patches, of which these weights need none.
    """
    linears, pieces = denoiser.linears(), PinnedPieces(device)
    blocks = [
        [linear for name, linear in linears.items() if parse_linear(name).block == block]
        for block in range(denoiser.spec.blocks)
    ]
    with ExitStack() as closing:
        closing.enter_context(empty_comfyui())
        layers, frozen = (import_file(f"nodes.host.{name}") for name in ("offloaded_layers", "frozen_linear"))
        layers.has_offload_stream = lambda device: True
        layers.loaded_weight = lambda layer, like: nullcontext((layer.weight, layer.bias))
        closing.callback(pieces.release)
        for block in blocks:
            _move_to_host(block, pieces)
        offloaded = layers.OffloadedLayers(blocks)
        layers.is_elsewhere = lambda layer, device: True  # on a CPU host memory is the device's own
        offloaded.open(device)
        closing.callback(offloaded.close)
        for linear in linears.values():
            ends_block = linear.forward.ends_block
            del linear.forward
            linear.forward = frozen.freeze_forward(linear, offloaded, ends_block)
        yield


def _move_to_host(linears: list[nn.Linear], pieces: PinnedPieces) -> None:
    piece, copies = pack([each.detach() for linear in linears for each in (linear.weight, linear.bias)])
    pieces.add(piece)
    in_host = iter(copies)
    for linear in linears:
        for name in ("weight", "bias"):
            setattr(linear, name, nn.Parameter(next(in_host), requires_grad=False))
