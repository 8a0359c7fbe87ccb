"""Settings with explanations: one text is both the command line's help and the node's tooltip."""

from dataclasses import field, fields
from typing import Any


def declare_setting(default: Any, text: str) -> Any:
    """Declare a field of a settings dataclass, with its explanation in one or two sentences."""
    return field(default=default, metadata={"help": text})


def collect_help(settings: type) -> dict[str, str]:
    """Return the explanation of each field of a settings dataclass, by the field's name."""
    return {each.name: each.metadata["help"] for each in fields(settings)}
