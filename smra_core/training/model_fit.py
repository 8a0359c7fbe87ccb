"""Check settings against the model that is to be trained, and fit them to it, once its sizes are known."""

from dataclasses import replace
from typing import TypeVar

from ..lora.plan import SparsePlan
from ..wan.spec import WanSpec
from .motion_settings import MotionSettings
from .sura import SubjectSettings

Settings = TypeVar("Settings", SubjectSettings, MotionSettings)


def fit_noise_range(settings: Settings, spec: WanSpec) -> Settings:
    """Return the settings with the noise range of this model's experts, where one of them is asked for."""
    return replace(settings, noise_range=settings.noise_range.fit_to(spec))


def check_fit(settings: SubjectSettings | MotionSettings, spec: WanSpec) -> None:
    """Raise ValueError for a size that its tokens do not divide, for a first frame that it does not take, for
    a block that it does not have, and for a plan without any layer.

    The sizes come from the file's header, so that this is known before anything is loaded.
    """
    spec.latents.check_size(settings.width, settings.height)
    if isinstance(settings, MotionSettings) and settings.first_frame_share and not spec.takes_given_latents:
        raise ValueError(
            f"first_frame_share is {settings.first_frame_share}, but {spec.name} takes no frame among its "
            "latents, as TI2V-5B does. Set it to 0; an image-to-video model takes the frame from the "
            "conditioning (WanImageToVideo)."
        )
    _check_plan(settings.plan, spec)
    if isinstance(settings, SubjectSettings) and settings.sura_weight:
        if settings.align_block >= spec.blocks:
            raise ValueError(
                f"align_block is {settings.align_block}, but this model has blocks 0 to {spec.blocks - 1}. "
                "The paper's is 0."
            )


def _check_plan(plan: SparsePlan, spec: WanSpec) -> None:
    if plan.blocks is not None and plan.blocks[1] > spec.blocks:
        raise ValueError(
            f"Plan {plan} names blocks {plan.blocks[0]} to {plan.blocks[1] - 1}, but this model has blocks "
            f"0 to {spec.blocks - 1}. Give a range that ends with {spec.blocks} or less, such as "
            f"@0:{spec.blocks}."
        )
    if not plan.select(spec.linear_names()):
        raise ValueError("The plan names no layer, so that nothing would be trained. Give one such as q,k.")
