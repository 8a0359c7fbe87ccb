"""The switch of a run that finds its T_point by itself, from what ComfyUI's sampler shows of the run."""

import logging

from torch import Tensor

from ...smra_core.lora.settled_switch import SettledSwitch, describe_switch

log = logging.getLogger("smrabooth")
_POSITIVE = 0
"""ComfyUI's number of the prompt, as against the negative one, in `cond_or_uncond`."""


class RunSwitch:
    """Switch where the motion of the video has settled; it begins anew with each run."""

    def __init__(self):
        self._switch, self._levels = SettledSwitch(), []
        self._lowest = float("inf")

    def find_boundary(self, sigma: float, levels: list[float]) -> float:
        """Return the noise level at and below which the late strengths apply, before an evaluation at `sigma`
        in a run over these levels. A run over other levels, and one that starts again, are new runs.
        """
        if levels != self._levels or (sigma == levels[0] and self._lowest < sigma):
            self.finish_run()
            self._levels = levels
        self._lowest = min(self._lowest, sigma)
        return self._switch.find_boundary(levels)

    def record(self, sigma: float, x0: Tensor, options: dict) -> None:
        """Take the videos `B C f h w` that were predicted; those for the negative prompt do not count, as
        they move otherwise.
        """
        kinds = options.get("cond_or_uncond") or [_POSITIVE]
        parts = [part for part, kind in zip(x0.chunk(len(kinds)), kinds, strict=False) if kind == _POSITIVE]
        if parts and self._levels:
            self._switch.record(sigma, parts[0].detach())

    def finish_run(self) -> None:
        """Log where the run has switched, and forget it."""
        if self._levels and self._switch.rates:
            log.info("Sparse LoRA: %s", describe_switch(self._switch, self._levels))
        self._switch, self._levels, self._lowest = SettledSwitch(), [], float("inf")
