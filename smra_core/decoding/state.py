"""State of a streaming decoder, and its way to host memory and back."""

from typing import Protocol

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
    """Copy a state to host memory."""
    return state and tuple(tensor.cpu() for tensor in state)


def reload_with_grad(state: DecoderState, like: Tensor) -> list[Tensor]:
    """Copy a state to the device of `like`, as leaves of a new autograd graph."""
    return [tensor.to(like.device).detach().requires_grad_() for tensor in state]


def to_device_of(state: Tensor, like: Tensor) -> Tensor:
    """Move one tensor of a state to the device of `like`."""
    return state.to(like.device)
