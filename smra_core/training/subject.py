"""From a subject folder to a subject LoRA: encode once, free the encoders, train, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.subject_set import SubjectImage
from ..encoders.dinov2 import load_dinov2
from ..storage.content_hash import identity
from ..storage.on_demand import on_demand
from ..storage.tensor_cache import content_hash
from .job import TrainedLora, TrainingJob, run_job
from .sura import SubjectObjective, SubjectSample, SubjectSettings, mask_to_latent
from .trainer import StepInfo, TrainSettings

if TYPE_CHECKING:  # it needs diffusers, which ComfyUI does without
    from ..standalone.backend import Workplace


def train_subject(
    workplace: Workplace,
    images: Sequence[SubjectImage],
    dinov2: Path | None,
    settings: SubjectSettings,
    train: TrainSettings,
    name: str = "subject",
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainedLora:
    """Train, resume or extend the subject LoRA of these images; a finished run is returned at once.

    `dinov2` is the file of the teacher's weights; it may be None when sura_weight is 0 (ValueError
    otherwise), and is not read then.
    """
    if settings.sura_weight and dinov2 is None:
        raise ValueError(
            f"SuRA at weight {settings.sura_weight} needs DINOv2's weights. Give their file, or set "
            "sura_weight to 0 to train on the region loss alone."
        )
    dinov2 = dinov2 if settings.sura_weight else None
    samples = prepare_subject(workplace, images, dinov2)
    job = TrainingJob(
        "subject", name, settings, train, samples, [image.caption for image in images],
        make_objective=lambda: _objective(workplace, samples[0], settings, train.seed),
    )  # fmt: skip
    return run_job(workplace, job, on_step)


def _objective(
    workplace: Workplace, sample: SubjectSample, settings: SubjectSettings, seed: int
) -> SubjectObjective:
    objective = SubjectObjective(settings, workplace.spec().dim, sample.features.shape[-1], seed)
    objective.projector.to(workplace.device)
    return objective


def prepare_subject(
    workplace: Workplace, images: Sequence[SubjectImage], dinov2: Path | None
) -> list[SubjectSample]:
    """All that training needs of the images, each encoder loaded at most once and freed before the next.

    Without a teacher the features are empty.
    """
    masks = [_mask_of(image) for image in images]  # first, as a missing mask is refused
    contexts = workplace.contexts([image.caption for image in images])
    latents = workplace.latents([image.pixels[None] for image in images])
    features = [torch.zeros(0, 1)] * len(images)
    if dinov2 is not None:
        features = patch_features(workplace, [image.pixels for image in images], dinov2)
    return [
        SubjectSample(image.name, z, contexts[image.caption], mask, feature)
        for image, z, mask, feature in zip(images, latents, masks, features, strict=True)
    ]


def _mask_of(image: SubjectImage) -> Tensor:
    if image.mask_px is None:
        raise ValueError(f"{image.name} has no mask. Add one to masks/, or let SAM find it with --sam FILE.")
    return mask_to_latent(image.mask_px)


def patch_features(workplace: Workplace, pictures: Sequence[Tensor], dinov2: Path) -> list[Tensor]:
    """DINOv2's patch features `N D` of each picture `3 H W` in [0, 1]."""
    weights = identity(dinov2)
    with on_demand(lambda: load_dinov2(dinov2, workplace.device)) as teacher:

        def encode(picture: Tensor) -> Tensor:
            def compute() -> dict[str, Tensor]:
                return {"features": teacher().patch_features(picture[None].to(workplace.device))[0].cpu()}

            key = {"dinov2": weights, "picture": content_hash(picture)}
            return workplace.cache.get_or_compute("dinov2", key, compute)["features"]

        return [encode(picture) for picture in pictures]
