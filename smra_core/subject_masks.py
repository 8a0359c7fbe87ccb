"""Masks for subject pictures that came without one, found by SAM."""

import logging
from collections.abc import Sequence
from pathlib import Path

from .encoders.sam import load_sam, subject_mask
from .on_demand import on_demand
from .subject_set import SubjectImage

log = logging.getLogger("smrabooth")


def with_masks(images: Sequence[SubjectImage], sam: Path | None, device="cpu") -> list[SubjectImage]:
    """The images, each with a mask; SAM is loaded only when one is missing.

    SAM takes the large, central, stable thing in each picture. ValueError when a mask is missing and no SAM
    file is given.
    """
    missing = [image.name for image in images if image.mask_px is None]
    if missing and sam is None:
        raise ValueError(
            f"{len(missing)} pictures have no mask, first {missing[0]}. Add masks/, or let SAM find the "
            "subject "
            "with --sam FILE."
        )
    with on_demand(lambda: load_sam(sam).to(device)) as model:

        def masked(image: SubjectImage) -> SubjectImage:
            if image.mask_px is not None:
                return image
            mask = subject_mask(model(), image.pixels.to(device)).cpu()
            log.info(
                "%s: SAM found a subject on %.0f %% of the picture.", image.name, 100 * mask.mean().item()
            )
            return image._replace(mask_px=mask)

        return [masked(image) for image in images]
