"""Train a subject LoRA from pictures and clips: encode them once, free the encoders, train, save."""

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ..data.subject_clip import SubjectClip
from ..data.subject_set import SubjectImage
from ..encoders.dinov2 import load_dinov2
from ..encoders.sam import find_subject_mask, load_sam
from ..lora.expert_pair import mark_expert
from ..storage.content_hash import fingerprint_weights, hash_content
from ..storage.on_demand import loaded_on_first_use
from ..wan.latents import split_by_latent
from ..wan.spec import LATENTS_21
from .backend import Backend
from .held_out import leave_one_out
from .job import TrainedLora, TrainingJob, check_precision, run_job
from .mask_grid import pool_to_latents
from .model_fit import check_fit, fit_noise_range
from .optimizer import check_optimizer
from .step_info import StepInfo
from .sura import SubjectObjective, SubjectSample, SubjectSettings
from .train_settings import TrainSettings

log = logging.getLogger("smrabooth")


def train_subject(
    backend: Backend,
    images: Sequence[SubjectImage | SubjectClip],
    dinov2: Path | None,
    settings: SubjectSettings,
    train: TrainSettings,
    name: str = "subject",
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainedLora:
    """Train, resume or extend the subject LoRA of these images and clips; a finished run is returned at once.

    `dinov2` is the file of DINOv2's weights. It may be None if sura_weight is 0 (ValueError otherwise), and
    is not read then. A noise range of one expert is added to the name. Every image needs a mask (see
    `find_missing_masks`).
    """
    check_precision(backend)
    if settings.sura_weight and dinov2 is None:
        raise ValueError(
            f"SuRA at sura_weight {settings.sura_weight} needs DINOv2's weights. Give their file, or set "
            "sura_weight to 0 to train on the region loss alone."
        )
    check_fit(settings, backend.spec)
    settings = fit_noise_range(settings, backend.spec)
    name = mark_expert(name, settings.noise_range.expert)
    dinov2 = dinov2 if settings.sura_weight else None
    leave_one_out(images, train.held_out_every)  # first, because a single picture raises an error
    check_optimizer(train.optimizer)
    with backend.ranks.let_first_prepare():
        prepared = prepare_subject(backend, images, dinov2)
    samples, held_out = leave_one_out(prepared, train.held_out_every)
    images, _ = leave_one_out(images, train.held_out_every)
    job = TrainingJob(
        "subject", name, settings, train, samples, [image.caption for image in images],
        load_objective=lambda: _load_objective(backend, samples[0], settings, train.seed),
        held_out=held_out,
    )  # fmt: skip
    return run_job(backend, job, on_step)


def _load_objective(
    backend: Backend, sample: SubjectSample, settings: SubjectSettings, seed: int
) -> SubjectObjective:
    objective = SubjectObjective(settings, backend.spec.dim, sample.features.shape[-1], seed)
    objective.projector.to(backend.device)
    return objective


def prepare_subject(
    backend: Backend, items: Sequence[SubjectImage | SubjectClip], dinov2: Path | None
) -> list[SubjectSample]:
    """Encode all that training needs of pictures and clips; each encoder is loaded at most once and freed
    before the next.

    Without DINOv2's file the features are empty. ValueError if a mask is missing, or empty all over.
    """
    masks = [_take_masks(item) for item in items]  # first, because a missing mask raises an error
    conditions = backend.make_conditions([item.frames for item in items])
    contexts = backend.encode_captions([item.caption for item in items])
    latents = backend.encode_clips([item.frames for item in items])
    features = [torch.zeros(0, 1)] * len(items)
    if dinov2 is not None:
        features = _extract_features(backend, [item.frames for item in items], dinov2)
    return [
        SubjectSample(
            item.name,
            z,
            contexts[item.caption],
            _fit_mask(mask_px, z, condition.given),
            feature,
            condition.inputs,
        )
        for item, z, mask_px, feature, condition in zip(
            items, latents, masks, features, conditions, strict=True
        )
    ]


def _take_masks(item: SubjectImage | SubjectClip) -> Tensor:
    if item.masks_px is None:
        raise ValueError(f"{item.name} has no mask. Add one to masks/, or let SAM find it with --sam FILE.")
    if not item.masks_px.any():
        # A region loss over no pixel would teach nothing.
        raise ValueError(
            f"The subject mask of {item.name} is empty. Paint the subject white, or leave the mask out and "
            "use SAM."
        )
    return item.masks_px


def _fit_mask(mask_px: Tensor, latents: Tensor, given: Tensor | None) -> Tensor:
    """Return the mask `1 f h w` of latents `C f h w`; latents that are given to the model have none."""
    mask_latent = pool_to_latents(mask_px, latents.shape[-2:])
    return mask_latent if given is None else mask_latent * (~given)[None, :, None, None]


def _extract_features(backend: Backend, clips: Sequence[Tensor], dinov2: Path) -> list[Tensor]:
    """Return DINOv2's features `N D` of each clip `F 3 H W`, one per DiT token.

    A token of four frames gets the mean of their features.
    """
    extracted = iter(extract_patch_features(backend, [frame for clip in clips for frame in clip], dinov2))
    by_clip = [torch.stack(list(islice(extracted, len(clip)))) for clip in clips]
    return [torch.cat([frames.mean(0) for frames in split_by_latent(features)]) for features in by_clip]


def extract_patch_features(backend: Backend, pictures: Sequence[Tensor], dinov2: Path) -> list[Tensor]:
    """Return DINOv2's patch features `N D` of each picture `3 H W` in [0, 1], from the cache where they are
    in it.
    """
    weights = fingerprint_weights(dinov2)
    pixels = backend.spec.latents.token_pixels
    # Nothing for WAN 2.1, whose keys are older than other grids.
    grid = {} if pixels == LATENTS_21.token_pixels else {"pixels of a patch": pixels}
    with loaded_on_first_use(lambda: load_dinov2(dinov2, backend.device)) as encoder:

        def encode(picture: Tensor) -> Tensor:
            def compute() -> dict[str, Tensor]:
                features = encoder().extract_patch_features(picture[None].to(backend.device), pixels)
                return {"features": features[0].cpu()}

            key = {"dinov2": weights, "picture": hash_content(picture), **grid}
            return backend.cache.get_or_compute("dinov2", key, compute)["features"]

        return [encode(picture) for picture in pictures]


def _needs_mask(item: SubjectImage | SubjectClip) -> bool:
    """Return whether SAM is to find the mask; it finds none of a clip."""
    return isinstance(item, SubjectImage) and item.mask_px is None


def find_missing_masks(
    images: Sequence[SubjectImage | SubjectClip], sam: Path | None, backend: Backend
) -> list[SubjectImage | SubjectClip]:
    """Return the images and clips, each image with a mask; SAM is loaded only for masks that are not in the
    cache.

    SAM takes the large, central, stable object in each picture. ValueError when a mask is missing and no SAM
    file is given.
    """
    missing = [image.name for image in images if _needs_mask(image)]
    if missing and sam is None:
        raise ValueError(
            f"{len(missing)} pictures have no mask or an empty one, first {missing[0]}. Give masks that are "
            "white on the subject, or give SAM's weights (--sam FILE, or the sam input), which finds the "
            "subject at the center."
        )
    weights = fingerprint_weights(sam) if missing and sam else ""
    with loaded_on_first_use(lambda: load_sam(sam).to(backend.device)) as model:

        def with_mask(image: SubjectImage | SubjectClip) -> SubjectImage | SubjectClip:
            if not _needs_mask(image):
                return image

            def compute() -> dict[str, Tensor]:
                return {"mask": find_subject_mask(model(), image.pixels.to(backend.device))}

            key = {"sam": weights, "picture": hash_content(image.pixels)}
            mask = backend.cache.get_or_compute("mask", key, compute)["mask"]
            share = 100 * mask.mean().item()
            log.info("%s: SAM found a subject on %.0f %% of the picture.", image.name, share)
            return image._replace(mask_px=mask)

        return [with_mask(image) for image in images]
