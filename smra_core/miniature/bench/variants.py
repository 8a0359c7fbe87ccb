"""Variants of the method that the bench compares: how each trains its two LoRAs, and how it combines them."""

from dataclasses import dataclass, replace

from ...lora.plan import ALL_LAYERS, MOTION_WITHOUT_FFN_0, SUBJECT_WITHOUT_FFN_0
from ...lora.schedule import MOTION_STRENGTHS, SUBJECT_STRENGTHS, Strengths, TPoint
from ...training.motion_settings import MotionSettings
from ...training.sura import SubjectSettings
from ..small_settings import MOTION, SUBJECT
from ..small_settings import SAMPLING as DEMO_SAMPLING

SAMPLING = replace(DEMO_SAMPLING, steps=20)
"""Sampling with fewer steps than in the demo: many clips are needed, and T_point is a noise level."""
T_POINT_STEPS = 50
"""Number of steps of the paper's sampling at shift 1; T_point is named as one of them."""


@dataclass(frozen=True)
class BenchVariant:
    """One row of the bench's table, which changes one thing of SMRABooth. Without settings a LoRA is left
    out.
    """

    name: str
    subject: SubjectSettings | None = SUBJECT
    motion: MotionSettings | None = MOTION
    strengths: Strengths = SUBJECT_STRENGTHS
    motion_strengths: Strengths = MOTION_STRENGTHS
    t_point: TPoint = TPoint()
    joint: bool = False
    """Whether both LoRAs are trained together (see joint_training)."""
    pictures: int | None = None
    """Number of the subject's pictures that are known; None is all."""


def at_step(step: int) -> TPoint:
    """Return the T_point at a step of the paper's sampling."""
    return TPoint.from_step(step, T_POINT_STEPS)


_KEPT = replace(SUBJECT, preserve_weight=1.0)
_ALIGNED_AND_KEPT = replace(_KEPT, sura_share=0.3)
_PLAIN_SUBJECT = replace(SUBJECT, plan=ALL_LAYERS, sura_weight=0.0)
_WITHOUT_MORA = replace(MOTION, mora_weight=0.0, mora_share=0.0)
_PLAIN_MOTION = replace(_WITHOUT_MORA, plan=ALL_LAYERS)
VARIANTS = (
    BenchVariant("base, no LoRA", None, None),
    BenchVariant("plain LoRAs", _PLAIN_SUBJECT, _PLAIN_MOTION, Strengths.from_value(SUBJECT_STRENGTHS.late)),
    BenchVariant("SMRABooth (T_point 15)"),
    BenchVariant("without SuRA", replace(SUBJECT, sura_weight=0.0)),
    BenchVariant("SuRA at 100 times its weight", replace(SUBJECT, sura_weight=100 * SUBJECT.sura_weight)),
    BenchVariant("without MoRA", motion=_WITHOUT_MORA),
    BenchVariant(
        "MoRA at 300 times the paper's weight", motion=replace(MOTION, mora_weight=300.0, mora_share=0.0)
    ),
    BenchVariant(
        "base preserved for the motion, without MoRA",
        motion=replace(_WITHOUT_MORA, preserve_weight=1.0),
    ),
    BenchVariant("trained jointly, without MoRA", motion=_WITHOUT_MORA, joint=True),
    BenchVariant("all-layer injection", replace(SUBJECT, plan=ALL_LAYERS), replace(MOTION, plan=ALL_LAYERS)),
    BenchVariant("subject without FFN.0", replace(SUBJECT, plan=SUBJECT_WITHOUT_FFN_0)),
    BenchVariant("motion without FFN.0", motion=replace(MOTION, plan=MOTION_WITHOUT_FFN_0)),
    BenchVariant("T_point 0", t_point=at_step(0)),
    BenchVariant("T_point 30", t_point=at_step(30)),
    BenchVariant("T_point 50", t_point=at_step(50)),
    *[
        BenchVariant(f"motion at {late} after T_point", motion_strengths=Strengths(1.0, late))
        for late in (0.5, 0.25)
    ],
    BenchVariant("base preserved for the subject", _KEPT),
    BenchVariant("one picture", pictures=1),
    BenchVariant("one picture, base preserved", _KEPT, pictures=1),
    BenchVariant("one picture, SuRA at a share of 0.3, base preserved", _ALIGNED_AND_KEPT, pictures=1),
)
