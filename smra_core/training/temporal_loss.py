"""Losses of a clip's predicted velocities: how far they are off, and how that changes from frame to frame.

They need nothing decoded. The paper's temporal loss is the first; MoRA comes beside it (see mora).
"""

import torch
from torch import Tensor

from .mask_grid import average_inside

ANCHOR_SCALE = 2**0.5
"""Factor a of MotionDirector's debiasing; b is 1, so that a^2 - b^2 = 1 keeps the size of the motion part."""


def debias(velocity: Tensor, anchor: Tensor) -> Tensor:
    """Remove the appearance that all frames share from a velocity (MotionDirector, "appearance-debiased
    loss").

    Takes `B C f h w` and the index `B` of each sample's anchor latent frame; returns sqrt(2) v - v[anchor].
    """
    return ANCHOR_SCALE * velocity - _take_frame(velocity, anchor)


def _take_frame(clips: Tensor, frame: Tensor) -> Tensor:
    """Return one latent frame `B C 1 h w` of each of the clips `B C f h w`, given its index `B`."""
    index = frame.view(-1, 1, 1, 1, 1).expand(-1, clips.shape[1], 1, *clips.shape[3:])
    return clips.gather(2, index)


def temporal_loss(
    velocity: Tensor,
    target: Tensor,
    anchor: Tensor | None = None,
    given: Tensor | None = None,
    mask_latent: Tensor | None = None,
) -> Tensor:
    """Return L_temporal `B`: the mean squared velocity error, plus that of the debiased velocities if an
    anchor is given.

    Velocities are `B C f h w`. The means leave out latents that are `given` to the model, bool `B f`, and
    cells where the mask `B 1 f h w` is 0; a debiased cell counts where its own cell and the anchor's do.
    """
    counted = _combine_masks(given, mask_latent, velocity)
    error = average_inside((velocity - target) ** 2, counted)
    if anchor is None:
        return error
    if counted is not None:
        counted = counted * _take_frame(counted, anchor)
    return error + average_inside((debias(velocity, anchor) - debias(target, anchor)) ** 2, counted)


def compute_difference_loss(
    velocity: Tensor, target: Tensor, given: Tensor | None = None, mask_latent: Tensor | None = None
) -> Tensor:
    """Return the mean squared change `B` of the velocity error from one latent to the next.

    What is wrong in all frames alike, such as a color, costs nothing; what moves otherwise does. Velocities
    are `B C f h w`. Where a latent is `given` to the model, bool `B f`, or the mask `B 1 f h w` is 0, there
    is no error, and no change to it is counted.
    """
    counted = _combine_masks(given, mask_latent, velocity)
    error = velocity - target
    if counted is None:
        return average_inside(error.diff(dim=2) ** 2, None)
    return average_inside((error * counted).diff(dim=2) ** 2, counted[:, :, 1:])


def _combine_masks(given: Tensor | None, mask_latent: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the mask `B 1 f h w` of the cells that count; None where all do."""
    if given is None:
        return mask_latent
    counted = (~given).to(like.dtype)[:, None, :, None, None].expand_as(like[:, :1])
    return counted if mask_latent is None else counted * mask_latent


def draw_anchors(batch: int, frames: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw the index `B` of a latent of each sample, all equally likely that are not `given`, bool `B f`."""
    if given is None:
        return torch.randint(frames, (batch,), generator=generator)
    choices = [(~row).nonzero()[:, 0] for row in given.cpu()]
    return torch.stack([row[torch.randint(len(row), (), generator=generator)] for row in choices])
