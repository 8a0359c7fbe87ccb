"""Masks for subject pictures that came without one, found by SAM."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ..data.subject_set import SubjectImage
from ..encoders.sam import load_sam, subject_mask
from ..standalone.backend import Workplace
from ..storage.on_demand import on_demand
from ..storage.tensor_cache import content_hash

log = logging.getLogger("smrabooth")


def with_masks(images: Sequence[SubjectImage], sam: Path | None, workplace: Workplace) -> list[SubjectImage]:
    """The images, each with a mask; SAM is loaded only when one is missing that it never made before.

    SAM takes the large, central, stable thing in each picture. ValueError when a mask is missing and no SAM
    file is given.
    """
    missing = [image.name for image in images if image.mask_px is None]
    if missing and sam is None:
        raise ValueError(
            f"{len(missing)} pictures have no mask, first {missing[0]}. Add masks/, or let SAM find the "
            "subject with --sam FILE."
        )
    weights = content_hash(sam) if missing and sam else ""
    with on_demand(lambda: load_sam(sam).to(workplace.device)) as model:

        def masked(image: SubjectImage) -> SubjectImage:
            if image.mask_px is not None:
                return image
            key = {"sam": weights, "picture": content_hash(image.pixels)}
            compute = lambda: {"mask": subject_mask(model(), image.pixels.to(workplace.device))}  # noqa: E731
            mask = workplace.cache.get_or_compute("mask", key, compute)["mask"]
            share = 100 * mask.mean().item()
            log.info("%s: SAM found a subject on %.0f %% of the picture.", image.name, share)
            return image._replace(mask_px=mask)

        return [masked(image) for image in images]
