"""State of a streaming decoder, and its way to host memory and back."""

from typing import Protocol

import torch
from torch import Tensor

DecoderState = tuple[Tensor, ...]
"""For each causal convolution, in order, the last two frames that entered it: `B C 2 H W`."""


class StreamingDecoder(Protocol):
    """A video decoder that works through a clip in steps and keeps its state as plain values."""

    def step(self, latents: Tensor, state: DecoderState | None, /) -> tuple[Tensor, DecoderState]:
        """Decode latents `B C k h w` to pixels `B 3 n H W` in [-1, 1]; return them and the new state.

        State None starts a clip. A state in host memory is moved to the device as it is needed. A decoder for
        windows with `small_stages_only` latents takes their number as a third argument.
        """
        ...

    def finish(self, latents: Tensor, state: DecoderState | None, /) -> Tensor:
        """Return the pixels of `step` alone, for the last latents of a clip."""
        ...


def offload(state: DecoderState | None) -> DecoderState | None:
    """Copy a state to host memory; from a card into pinned memory, without waiting for the copy.

    What reads the copy must be queued on the same card after it, as the functions below are.
    """
    return state and tuple(map(_copy_to_host, state))


def _copy_to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to pinned memory, or to other memory of the host where the system pins no more."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    try:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:
        return tensor.cpu()
    return host.copy_(tensor, non_blocking=True)


def reload_with_grad(state: DecoderState, like: Tensor) -> list[Tensor]:
    """Copy a state to the device of `like`, as leaves of a new autograd graph."""
    return [to_device_of(tensor, like).detach().requires_grad_() for tensor in state]


def to_device_of(state: Tensor, like: Tensor) -> Tensor:
    """Move one tensor of a state to the device of `like`."""
    return state.to(like.device, non_blocking=state.is_pinned())
