"""Arms of the bench that train a subject LoRA, by name: R is the region loss, S is SuRA."""

from dataclasses import replace

from ...lora.plan import SparsePlan
from ...wan.noise_range import NoiseRange
from ..small_settings import SUBJECT
from ..world.scenes import FIGURES
from .subject_arms import SubjectArm

WITHOUT = replace(SUBJECT, sura_weight=0.0)
LAST_BLOCK = 3
REGION = SubjectArm("R", WITHOUT)
"""The region loss alone, weighted by noise level as the authors train."""
PAPER = SubjectArm("R + S 0.05")
SHARED = SubjectArm("R + S share 0.3", replace(SUBJECT, sura_share=0.3))
"""SuRA with 30 % of the gradient in the layers that it reaches."""
DEEP = replace(SUBJECT, sura_share=0.3, align_block=LAST_BLOCK)


def _train_on_figures(arm: SubjectArm, pictures: int = 3, seeds: int = 2) -> SubjectArm:
    name = f"{arm.name}, figures" + (f", {pictures} picture" if pictures == 1 else "")
    return replace(arm, name=name, cases=tuple(FIGURES), pictures=pictures, seeds=seeds)


def _train_at(low: float, high: float) -> SubjectArm:
    text = f"below {high}" if high < 1 else f"above {low}"
    return SubjectArm(f"R {text}", replace(WITHOUT, noise_range=NoiseRange(low, high)))


_BASE = SubjectArm("base", WITHOUT, region=0.0)
# At block 0, only that block's linears get a gradient.
_FIRST_BLOCK = SparsePlan(SUBJECT.plan.roles, (0, 1))
_ALONE = SubjectArm("S alone", replace(SUBJECT, plan=_FIRST_BLOCK), region=0.0)
_DEEP_ALONE = SubjectArm("S alone, block 3", replace(SUBJECT, align_block=LAST_BLOCK), region=0.0)
_DEEP_SHARED = SubjectArm("R + S share 0.3, block 3", DEEP)
_DECODED = SubjectArm("R + S share 0.3, decoded", SHARED.settings, decoded=True)
_BELOW_06, _BELOW_0875 = _train_at(0.0, 0.6), _train_at(0.0, 0.875)
_REST = SubjectArm("R on o,ffn.0,ffn.2", replace(WITHOUT, plan=SparsePlan.parse("o,ffn.0,ffn.2")))
SUBJECT_ARMS = [
    _BASE,
    REGION,
    PAPER,
    _ALONE,
    SHARED,
    *map(_train_on_figures, (_BASE, PAPER, _ALONE)),
    *[_train_on_figures(arm, seeds=4) for arm in (REGION, SHARED)],
    _BELOW_06,
    _BELOW_0875,
    _train_at(0.875, 1.0),
    _REST,
    replace(SHARED, name="R + S share 0.3 above 0.5", aligned_above=0.5),
    _DEEP_ALONE,
    _DEEP_SHARED,
    replace(_DEEP_SHARED, name="R + S share 0.3, block 3, projector held", held_projector=True),
    replace(_DEEP_ALONE, name="S alone, block 3, projector held", held_projector=True),
    _DECODED,
    replace(_DECODED, name="S alone, decoded", settings=SUBJECT, region=0.0),
    replace(_BELOW_0875, name="R below 0.875 on below", applied=_BELOW_0875.settings.noise_range),
    SubjectArm("R + preservation 1", replace(WITHOUT, preserve_weight=1.0)),
    _train_on_figures(PAPER, 1),
    *[_train_on_figures(arm, 1, seeds=4) for arm in (REGION, SHARED)],
    *[replace(arm, name=f"{arm.name}, 1 picture", pictures=1) for arm in (REGION, SHARED)],
    *map(_train_on_figures, (_DEEP_SHARED, _DECODED, _BELOW_06, _REST)),
    replace(REGION, name="R accumulate 2", accumulate=2),
    SubjectArm("R unweighted", replace(WITHOUT, weighted_velocity=False)),
    SubjectArm("R s3u", replace(WITHOUT, shift=3.0, weighted_velocity=False)),
    replace(REGION, name="R accumulate 4", accumulate=4),
]
