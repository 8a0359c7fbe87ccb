"""Range of noise levels that a LoRA is trained at, and the presets for the experts of Wan 2.2."""

import re
from dataclasses import dataclass, replace

from .spec import T2V_BOUNDARY, TIMESTEPS, WanSpec

_TWO_NUMBERS = re.compile(r"(?P<low>[0-9.]+(?:e-?\d+)?)\s*(?:to|,|-)\s*(?P<high>[0-9.]+)")


@dataclass(frozen=True)
class NoiseRange:
    """Range of sigma, both ends included, that training takes its noise levels from."""

    low: float = 0.0
    high: float = 1.0
    preset: str = ""
    """Name of one of NOISE_PRESETS; empty for two numbers."""

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"The noise range is {self.low} to {self.high}; give two sigmas with 0 <= low < high <= 1, "
                "such as 0.6 to 1."
            )

    @property
    def is_whole(self) -> bool:
        """Whether every noise level is in the range."""
        return (self.low, self.high) == (0.0, 1.0)

    @property
    def expert(self) -> str | None:
        """Expert of Wan 2.2 that the preset is for, `high` or `low`, or None."""
        return _EXPERTS.get(self.preset)

    @property
    def timesteps(self) -> tuple[int, int]:
        """Lowest and highest timestep of the range, from 0 to 1000."""
        return round(TIMESTEPS * self.low), round(TIMESTEPS * self.high)

    def holds(self, sigma: float) -> bool:
        """Return whether a noise level is in the range."""
        return self.low <= sigma <= self.high

    def fit_to(self, spec: WanSpec) -> "NoiseRange":
        """Return the range for a model: the experts of another variant hand over at another level."""
        if self.expert == "high":
            return replace(self, low=spec.expert_boundary)
        if self.expert == "low":
            return replace(self, high=spec.expert_boundary)
        return self

    def __str__(self) -> str:
        return "whole" if self.is_whole else f"{self.preset} {self.low} to {self.high}".lstrip()

    @classmethod
    def parse(cls, text: str) -> "NoiseRange":
        """Parse what str() writes, the name of one of NOISE_PRESETS, or two numbers such as `0.6-1`.

        Raises ValueError for anything else.
        """
        words = text.strip()
        names = [name for name in NOISE_PRESETS if _join_words(words).startswith(_join_words(name))]
        rest = words[len(names[0]) :].strip() if names else words
        if names and not rest:
            return NOISE_PRESETS[names[0]]
        numbers = _TWO_NUMBERS.fullmatch(rest)
        if numbers is None:
            raise ValueError(
                f"Noise range {text!r} is not known. Give one of {', '.join(NOISE_PRESETS)}, or two sigmas "
                "such as 0.6-1."
            )
        low, high = float(numbers["low"]), float(numbers["high"])
        if not names and (low, high) == (0.0, 1.0):
            return WHOLE
        return cls(low, high, names[0] if names else "")


def _join_words(text: str) -> str:
    """Return the text in lower case with hyphens for spaces, so that a command line needs no quotes."""
    return text.lower().replace(" ", "-").replace("_", "-")


WHOLE = NoiseRange(preset="whole")
_EXPERTS = {"high-noise expert": "high", "low-noise expert": "low"}
NOISE_PRESETS = {
    "whole": WHOLE,
    "high-noise expert": NoiseRange(T2V_BOUNDARY, 1.0, "high-noise expert"),
    "low-noise expert": NoiseRange(0.0, T2V_BOUNDARY, "low-noise expert"),
    # A video's motion is decided above about timestep 600 (arXiv 2512.22175).
    "motion": NoiseRange(0.6, 1.0, "motion"),
}
"""Noise ranges by name. Those of the experts are for text to video; `NoiseRange.fit_to` gives others."""

NOISE_RANGE_HELP = (
    "Noise levels that training draws from: 'whole' draws all; 'high-noise expert' and 'low-noise expert' "
    "those of one expert of Wan 2.2, whose model you must connect yourself, as a model does not say which "
    "expert it is; 'motion' from 0.6 up, where motion is decided. Two numbers give another range: 0.6-1 on "
    "the command line, 'custom' in the graph. A narrower range learns its own levels faster and nothing of "
    "the others."
)
"""Explanation of the setting that both losses have."""
