"""Arms of the bench that train a subject LoRA, by name: R is the region loss, S is SuRA."""

from dataclasses import replace

from ...lora.plan import SparsePlan
from ...wan.noise_range import NoiseRange
from ..small_settings import SUBJECT
from ..world.scenes import FIGURES
from .subject_arms import SubjectArm

WITHOUT = replace(SUBJECT, sura_weight=0.0)
LAST_BLOCK = 3
DECIDING = 8
"""Seeds of the arms that decide about SuRA: with 2 subjects and 4 prompts, 64 clips."""
REGION = SubjectArm("R", WITHOUT, seeds=DECIDING)
"""The region loss alone, weighted by noise level as the authors train."""
PAPER = SubjectArm("R + S 0.05", seeds=DECIDING)
SHARED = SubjectArm("R + S share 0.3", replace(SUBJECT, sura_share=0.3), seeds=DECIDING)
"""SuRA with 30 % of the gradient in the layers that it reaches."""
DEEP = replace(SUBJECT, sura_share=0.3, align_block=LAST_BLOCK)


def _train_on_figures(arm: SubjectArm, pictures: int = 3) -> SubjectArm:
    name = f"{arm.name}, figures" + (f", {pictures} picture" if pictures == 1 else "")
    return replace(arm, name=name, cases=tuple(FIGURES), pictures=pictures)


def _train_on_one(arm: SubjectArm) -> SubjectArm:
    return replace(arm, name=f"{arm.name}, 1 picture", pictures=1)


def _train_at(low: float, high: float) -> SubjectArm:
    text = f"below {high}" if high < 1 else f"above {low}"
    return SubjectArm(f"R {text}", replace(WITHOUT, noise_range=NoiseRange(low, high)))


_BASE = SubjectArm("base", WITHOUT, region=0.0)
# At block 0, only that block's linears get a gradient.
_FIRST_BLOCK = SparsePlan(SUBJECT.plan.roles, (0, 1))
_ALONE = SubjectArm("S alone", replace(SUBJECT, plan=_FIRST_BLOCK), region=0.0)
_DEEP_ALONE = SubjectArm("S alone, block 3", replace(SUBJECT, align_block=LAST_BLOCK), region=0.0)
_DEEP_SHARED = SubjectArm("R + S share 0.3, block 3", DEEP, seeds=DECIDING)
_DECODED = SubjectArm("R + S share 0.3, decoded", SHARED.settings, decoded=True)
_BELOW_06, _BELOW_0875 = _train_at(0.0, 0.6), _train_at(0.0, 0.875)
_STOPPED = replace(SHARED, name="R + S share 0.3, projector stopped", stopped_projector=True, seeds=2)
_HIGH = replace(SHARED, name="R + S share 0.3 above 0.8", aligned_above=0.8, seeds=2)
_DEEP_HIGH = replace(_HIGH, name="R + S share 0.3, block 3, above 0.8", settings=DEEP)
# MotionBooth's weights are 0.01 and 1.
_WORDS = replace(REGION, name="R + words 0.01", words=0.01, seeds=2)
_MORE_WORDS = replace(REGION, name="R + words 0.3", words=0.3, seeds=2)
_CLIPS = replace(REGION, name="R + clips 1", clips=1.0, seeds=2)
_SHARED_CLIPS = replace(SHARED, name="R + S share 0.3 + clips 1", clips=1.0, seeds=2)
_KEPT = replace(SHARED.settings, preserve_weight=1.0)
_PRESERVED = SubjectArm("R + preservation 1", replace(WITHOUT, preserve_weight=1.0))
_SHARED_KEPT = SubjectArm("R + S share 0.3 + preservation 1", _KEPT)
_REST = SubjectArm("R on o,ffn.0,ffn.2", replace(WITHOUT, plan=SparsePlan.parse("o,ffn.0,ffn.2")))
_ACCUMULATED = [replace(REGION, name=f"R accumulate {n}", accumulate=n, seeds=2) for n in (2, 4)]
SUBJECT_ARMS = [
    _BASE,
    REGION,
    PAPER,
    SHARED,
    _DEEP_SHARED,
    _ALONE,
    *map(_train_on_figures, (_BASE, REGION, PAPER, SHARED, _DEEP_SHARED, _ALONE)),
    _BELOW_06,
    _BELOW_0875,
    _train_at(0.875, 1.0),
    _REST,
    replace(SHARED, name="R + S share 0.3 above 0.5", aligned_above=0.5, seeds=2),
    _DEEP_ALONE,
    replace(_DEEP_SHARED, name="R + S share 0.3, block 3, projector held", held_projector=True, seeds=2),
    replace(_DEEP_ALONE, name="S alone, block 3, projector held", held_projector=True),
    _DECODED,
    replace(_DECODED, name="S alone, decoded", settings=SUBJECT, region=0.0),
    replace(_BELOW_0875, name="R below 0.875 on below", applied=_BELOW_0875.settings.noise_range),
    _PRESERVED,
    *[_train_on_figures(replace(arm, seeds=4), 1) for arm in (REGION, SHARED)],
    _train_on_figures(replace(PAPER, seeds=2), 1),
    *[_train_on_figures(arm, 1) for arm in (_PRESERVED, _SHARED_KEPT, _SHARED_CLIPS)],
    *[_train_on_one(replace(arm, seeds=4)) for arm in (REGION, SHARED, _PRESERVED, _SHARED_KEPT)],
    *map(_train_on_figures, (_BELOW_06, _REST, _DECODED)),
    SubjectArm("R unweighted", replace(WITHOUT, weighted_velocity=False)),
    SubjectArm("R s3u", replace(WITHOUT, shift=3.0, weighted_velocity=False)),
    *_ACCUMULATED,
    *(_STOPPED, _HIGH, _DEEP_HIGH, _WORDS, _MORE_WORDS, _CLIPS),
    *map(_train_on_figures, (_STOPPED, _HIGH, _DEEP_HIGH, _WORDS, _MORE_WORDS, _CLIPS)),
]
