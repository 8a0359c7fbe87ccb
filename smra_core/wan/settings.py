"""Settings with explanations and limits: the command line and the nodes show the same texts and refuse the
same values.
"""

import math
import sys
from dataclasses import field, fields
from typing import Any, NamedTuple

_LARGEST = sys.float_info.max


class Limits(NamedTuple):
    """Range that a number must lie in; without numbers, any finite one."""

    least: float = -_LARGEST
    most: float = _LARGEST
    above: float | None = None
    """Bound that the number itself must not have, in place of `least`."""

    def holds(self, value: float) -> bool:
        """Return whether the value is in the range; NaN never is."""
        return self.least <= value <= self.most and (self.above is None or value > self.above)

    def __str__(self) -> str:
        bounds = [f"above {self.above}"] if self.above is not None else []
        bounds += [f"at least {self.least}"] if self.least > -_LARGEST else []
        bounds += [f"at most {self.most}"] if self.most < _LARGEST else []
        return " and ".join(bounds or ["finite"])


COUNT = Limits(1)
"""Limits of a number of things."""
NOT_NEGATIVE = Limits(0)
"""Limits of a weight: with one below 0, training would make a loss larger."""
POSITIVE = Limits(above=0)
FINITE = Limits()
SEED = Limits(-(2**63), 2**64 - 1)
"""Seeds that torch.Generator takes."""


def declare_setting(default: Any, text: str, limits: Limits | None = None, newer: bool = False) -> Any:
    """Declare a field of a settings dataclass, with its explanation in one or two sentences.

    `limits` are for a number; the dataclass checks them with `check_limits`. `newer` marks a field that was
    added when there were runs without it, and whose default is what these did (see `collect_identity`).
    """
    return field(default=default, metadata={"help": text, "limits": limits, "newer": newer})


def collect_identity(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass that make a run another run, as JSON values.

    A newer field at its default is left out, so that runs from before it keep their folders.
    """
    values = {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if not each.metadata["newer"] or getattr(settings, each.name) != each.default
    }
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }


def check_limits(settings: Any) -> None:
    """Raise ValueError for the first number of a settings dataclass that is outside of its limits."""
    for each in fields(settings):
        limits, value = each.metadata["limits"], getattr(settings, each.name)
        if limits is not None and not limits.holds(value):
            finite = "" if math.isfinite(value) or limits == FINITE else "finite and "
            raise ValueError(
                f"{each.name} must be {finite}{limits}, got {value}. The default is {each.default}."
            )


def collect_help(settings: type) -> dict[str, str]:
    """Return the explanation of each field of a settings dataclass, by the field's name."""
    return {each.name: each.metadata["help"] for each in fields(settings)}
