"""Shapes of the latents that samples become."""

from collections.abc import Sequence

from ...smra_core.data.motion_clip import MotionClip
from ...smra_core.wan.spec import LatentSpace
from .subject_samples import SubjectSample


def list_latent_shapes(
    latents: LatentSpace, samples: Sequence[SubjectSample | MotionClip]
) -> list[tuple[int, int, int, int]]:
    """Return the shape `C f h w` of the latents of each picture or clip."""
    frames = [sample.frames for sample in samples]
    return [latents.latent_shape(len(each), each.shape[3], each.shape[2]) for each in frames]
