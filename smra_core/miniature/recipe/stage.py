"""Checkpoints, logging and learning-rate schedule of the four pre-training stages."""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...storage.atomic_write import write_atomically

log = logging.getLogger("smrabooth")


@dataclass
class Stage:
    """A pre-training stage in a build folder: `NAME.pt` holds its state, `NAME.jsonl` its learning curve."""

    name: str
    build: Path
    steps: int
    report_every: int = 50
    save_every: int = 100
    _started: float = field(default_factory=time.monotonic)

    @property
    def state_path(self) -> Path:
        """File with the state of the stage."""
        return self.build / f"{self.name}.pt"

    def resume(self, parts: dict) -> int:
        """Load the state of each part, an object with `load_state_dict`; return the number of steps done so
        far.

        A new run has done 0 steps.
        """
        if not self.state_path.is_file():
            return 0
        state = torch.load(self.state_path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int, parts: dict) -> None:
        """Save the state of each part if `step` is a multiple of `save_every`, or the last step."""
        if step % self.save_every == 0 or step == self.steps:
            with write_atomically(self.state_path) as draft:
                torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, draft)

    def report(self, step: int, **values: float) -> None:
        """Add a point to the learning curve and log it with the seconds since the start."""
        seconds = time.monotonic() - self._started
        point = {"step": step, "seconds": round(seconds, 1)} | {k: round(v, 4) for k, v in values.items()}
        with open(self.build / f"{self.name}.jsonl", "a", encoding="utf-8") as curve:
            curve.write(json.dumps(point) + "\n")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        log.info("%s: step %d of %d, %s, %.0f s", self.name, step, self.steps, shown, seconds)


def schedule_rate(peak: float, step: int, steps: int, warmup: int = 50) -> float:
    """Return the learning rate of a step: a rise of `warmup` steps, then a cosine down to a fiftieth of the
    peak.
    """
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / warmup) * fall


def cast_where_fast() -> torch.autocast:
    """Return an autocast to bfloat16 on CPUs that multiply it in hardware (AVX512-BF16, AMX); elsewhere it
    does nothing.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16())


def multiplies_bfloat16() -> bool:
    """Return True if this CPU multiplies bfloat16 in hardware."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())
