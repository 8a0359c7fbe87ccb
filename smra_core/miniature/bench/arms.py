"""Arms of the bench, by name: T is the temporal loss, M is MoRA, D the change of the velocity error between
latents; s3u is shift 3, unweighted, and s1w is shift 1, weighted. A window has W latents and c more before
it, and a step compares k windows.
"""

from dataclasses import replace

from ...lora.plan import ALL_LAYERS, SparsePlan
from ...wan.noise_range import WHOLE, NoiseRange
from .motion_arms import MotionArm

SHIFTED = MotionArm("T s3u", shift=3.0, weighted=False)
"""The temporal loss at the shift of the sampling, all noise levels weighted the same."""
ALONE = MotionArm("M", temporal=0.0, mora=300.0)
"""MoRA alone, on the whole clip."""
TEMPORAL = MotionArm("T s1w")


def _use_windows(window: int, context: int, windows: int, in_turn: bool = False) -> MotionArm:
    name = f"M W{window} c{context} k{windows}" + (" in turn" if in_turn else "")
    return replace(ALONE, name=name, window=window, context=context, windows=windows, in_turn=in_turn)


WINDOWS = [
    replace(ALONE, name="M exact"),
    replace(ALONE, name="M exact s3", shift=3.0),
    *[_use_windows(1, context, windows) for context in (1, 2, 3) for windows in (1, 2, 4)],
    *[_use_windows(2, context, windows) for context in (1, 2, 3) for windows in (1, 2)],
    _use_windows(1, 2, 1, True),
    _use_windows(1, 3, 1, True),
    _use_windows(2, 2, 1, True),
]
NOISE_LEVELS = [
    MotionArm("base", temporal=0.0),
    *[
        MotionArm(f"T s{shift:g}{'w' if weighted else 'u'}", shift=shift, weighted=weighted)
        for shift in (1.0, 3.0, 5.0)
        for weighted in (True, False)
    ],
    *[
        MotionArm(f"T s{shift:g}u above {low}{' on above' if applied else ''}", shift=shift, weighted=False,
                  lowest=low, applied=NoiseRange(low, 1.0) if applied else WHOLE)
        for low in (0.5, 0.6, 0.7, 0.875)
        for shift, applied in ((3.0, False), (3.0, True), (1.0, False))
    ],
    *[replace(SHIFTED, name=f"T s3u + D {weight}", difference=weight) for weight in (0.3, 1.0, 3.0)],
    replace(SHIFTED, name="D s3u alone", temporal=0.0, difference=1.0),
    replace(TEMPORAL, name="T s1w + D 1", difference=1.0),
]  # fmt: skip
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
BALANCE = [
    *[replace(TEMPORAL, name=f"T s1w + M {weight}", mora=float(weight)) for weight in (1, 30, 300, 1000)],
    *[replace(TEMPORAL, name=f"T s1w + M share {share}", share=share) for share in SHARES],
    *[replace(SHIFTED, name=f"T s3u + M {weight}", mora=float(weight)) for weight in (1, 300)],
    *[replace(SHIFTED, name=f"T s3u + M share {share}", share=share) for share in SHARES],
    *[
        replace(SHIFTED, name=f"T s3u + M share {share} above 0.5", share=share, mora_lowest=0.5)
        for share in (0.3, 0.5)
    ],
    *[
        replace(
            SHIFTED,
            name=f"T s3u + M share 0.5 W{window} c{context} k1",
            share=0.5,
            window=window,
            context=context,
        )
        for window, context in ((1, 1), (1, 3), (2, 2))
    ],
    replace(SHIFTED, name="T s3u above 0.6 + M share 0.5", lowest=0.6, share=0.5),
]
PLANS = [
    [replace(each, name=f"{each.name} on {name}", plan=plan) for each in (TEMPORAL, SHIFTED)]
    for name, plan in (
        ("q,k", SparsePlan.parse("q,k")),
        ("v,o", SparsePlan.parse("v,o")),
        ("o,ffn.0,ffn.2", SparsePlan.parse("o,ffn.0,ffn.2")),
        ("q,k,ffn.0,ffn.2", SparsePlan.parse("q,k,ffn.0,ffn.2")),
        ("all", ALL_LAYERS),
    )
]

AVERAGED = [
    replace(_use_windows(2, 2, 1, True), name=f"M W2 c2 k1 in turn, {count} batches", accumulate=count)
    for count in (2, 4)
]
"""Arms that average each step over micro-batches. Each of these has a window, a noise level and noise of its
own, and no window comes again before the others have come.
"""

STACKS = [NOISE_LEVELS, WINDOWS, BALANCE, *PLANS, AVERAGED]
"""Arms that are trained side by side; those of a stack have the same layers."""
