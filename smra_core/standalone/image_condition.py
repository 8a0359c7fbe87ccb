"""What image-to-video models without CLIP take of a clip: its first frame, encoded, and a mask that says so.

The layout is that of Wan 2.2's image-to-video models and of diffusers' WanImageToVideoPipeline: 4 channels of
mask, one for each frame of a latent, then the latents of a clip whose other frames are gray.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..wan.condition import IMAGE_CHANNELS, Condition
from ..wan.spec import TEMPORAL_STRIDE, LatentSpace

log = logging.getLogger("smrabooth")

GRAY = 0.5
"""Value in [0, 1] of the frames that the model is not given."""


def make_image_conditions(
    clips: Sequence[Tensor], latents: LatentSpace, encode_clips: Callable[[Sequence[Tensor]], list[Tensor]]
) -> list[Condition]:
    """Return the condition of each clip `F 3 H W` in [0, 1]; `encode_clips` gives latents `C f h w`.

    A picture would be its own first frame: it is trained with the image left out (zeros), and this is logged.
    """
    if any(len(clip) == 1 for clip in clips):
        log.info("Pictures train this image-to-video model with the image left out (zeros).")
    encoded = iter(encode_clips([_keep_first_frame(clip) for clip in clips if len(clip) > 1]))
    return [
        _leave_image_out(clip, latents) if len(clip) == 1 else _give_first_frame(next(encoded))
        for clip in clips
    ]


def _keep_first_frame(clip: Tensor) -> Tensor:
    shown = torch.full_like(clip, GRAY)
    shown[0] = clip[0]
    return shown


def _leave_image_out(clip: Tensor, latents: LatentSpace) -> Condition:
    channels, *size = latents.latent_shape(1, clip.shape[-1], clip.shape[-2])
    return Condition({IMAGE_CHANNELS: torch.zeros(TEMPORAL_STRIDE + channels, *size)})


def _give_first_frame(image: Tensor) -> Condition:
    """Return the condition for encoded frames `C f h w` of which the first is given."""
    given = torch.arange(image.shape[1]) == 0
    mask = given.to(image.dtype)[:, None, None].expand(TEMPORAL_STRIDE, *image.shape[1:])
    return Condition({IMAGE_CHANNELS: torch.cat([mask, image])}, given)
