"""T_point chosen by the run itself: the first step at which the motion of the predicted video has settled.

The paper switches at a fixed step, after which T2V models are said to refine details alone. Here the run is
asked: the motion of a predicted video is its change from each latent to the next, and it has settled when it
changes slowly with the noise level.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SETTLED_RATE = 4.0
"""Rate at and below which the motion counts as settled: 4 means that over a step of 0.05 in noise level a
fifth of the motion changes. It was chosen on two videos of the miniature (see miniature/bench/README.md).
"""


def find_motion(x0: Tensor) -> Tensor:
    """Return the change from each latent to the next, `B C f-1 h w`, of latents `B C f h w`."""
    return x0[:, :, 1:] - x0[:, :, :-1]


def measure_motion_rate(before: Tensor, now: Tensor, sigma_step: float) -> float:
    """Return how fast the motion of the predicted video changes, relative to itself, per unit of noise level.

    `before` and `now` are predictions of the clean latents, `B C f h w`, of two evaluations whose noise
    levels differ by `sigma_step` > 0. It is the mean over the batch of
    `|motion(now) - motion(before)| / (|motion(now)| sigma_step)`, 0 where neither moves, and inf where only
    `before` does.
    """
    motion = find_motion(now).flatten(1).float()
    changed = (motion - find_motion(before).flatten(1).float()).norm(dim=1)
    ratio = torch.where(changed == 0, changed, changed / motion.norm(dim=1))
    return ratio.mean().item() / sigma_step


def check_frames(latents: int) -> None:
    """Raise ValueError for a video of one latent: a picture has no motion that could settle."""
    if latents < 2:
        raise ValueError(
            "T_point cannot be chosen by the motion of a picture: 5 frames are needed at least. Give a fixed "
            "T_point, such as 0.7."
        )


class SettledSwitch:
    """Switch of one sampling run: it is shown each prediction, and tells below which noise level to switch.

    It costs one subtraction of latents for each evaluation of the model.
    """

    def __init__(self, settled: float = SETTLED_RATE):
        self.settled = settled
        self.rates: list[tuple[float, float]] = []
        """(noise level, rate) of every evaluation from the second on."""
        self.switched_after: float | None = None
        """Noise level of the last evaluation with early strengths; None while there was no switch."""
        self._last: tuple[float, Tensor] | None = None

    def record(self, sigma: float, x0: Tensor) -> None:
        """Take the clean latents `B C f h w` that were predicted at a noise level.

        Of several at one level the first counts: they may be of other parts of the video. Raises ValueError
        for a single latent.
        """
        check_frames(x0.shape[2])
        if self._last is not None and sigma == self._last[0]:
            return
        if self._last is not None and sigma < self._last[0]:
            rate = measure_motion_rate(self._last[1], x0, self._last[0] - sigma)
            self.rates.append((sigma, rate))
            if self.switched_after is None and rate <= self.settled:
                self.switched_after = sigma
        self._last = sigma, x0

    def find_boundary(self, sigmas: Sequence[float]) -> float:
        """Return the noise level at and below which the late strengths apply, as TPoint.boundary does.

        Until the motion has settled it is that of the run's last step, which is late in any case: a run must
        not end without the subject. It is -1, all early, if the run does not reach 0.
        """
        last = float(sigmas[-2]) if float(sigmas[-1]) == 0 and len(sigmas) > 2 else -1.0
        if self.switched_after is None:
            return last
        # Below the level itself, which may be evaluated once more for the other prompt.
        return max(last, math.nextafter(self.switched_after, 0.0))


def describe_switch(switch: SettledSwitch, sigmas: Sequence[float]) -> str:
    """Describe in one line where a finished run has switched, and why."""
    levels = [float(sigma) for sigma in sigmas]
    boundary = switch.find_boundary(levels)
    early = sum(sigma > boundary for sigma in levels[:-1])
    if switch.switched_after is None:
        reason = f"the motion never settled (rate above {switch.settled:g} throughout)"
    else:
        rate = next(value for sigma, value in switch.rates if sigma == switch.switched_after)
        reason = f"the motion had settled at sigma {switch.switched_after:.3f} (rate {rate:.1f})"
    return f"switch at step {early} of {len(levels) - 1}, sigma {levels[early]:.3f}: {reason}"
