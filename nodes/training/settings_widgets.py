"""Widgets of a settings dataclass, one for each field: type, default and text are the dataclass's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from comfy_api.latest import io

from ...smra_core.wan.settings import collect_help

Settings = TypeVar("Settings")


class Widget(NamedTuple):
    """One field of a settings dataclass as a widget."""

    field: str
    limits: Mapping[str, Any] = {}
    """`min`, `max` and `step` of a number, as ComfyUI's inputs take them."""
    options: Sequence[str] = ()
    """Values that a list offers."""
    id: str | None = None
    """Id of the widget, where the field's name cannot serve as one."""
    note: str = ""
    """What the field's own text cannot know: where the value has an effect in the graph."""
    optional: bool = False
    """Whether a prompt may lack the value, as those from before the field do; the default then holds."""

    @property
    def name(self) -> str:
        return self.id or self.field


def make_widgets(defaults: Any, rows: Sequence[Widget]) -> list:
    """Return the inputs for a node's schema, each with the field's default and explanation."""
    texts = collect_help(type(defaults))
    return [_make_widget(row, getattr(defaults, row.field), texts[row.field]) for row in rows]


def _make_widget(row: Widget, default: Any, text: str):
    tooltip = f"{text} {row.note}".rstrip()
    common = {"default": default, "tooltip": tooltip}
    if row.options:
        return io.Combo.Input(row.name, options=list(row.options), **common)
    limits = dict(row.limits, optional=True) if row.optional else row.limits
    kinds: Mapping[type, Callable] = {bool: io.Boolean.Input, int: io.Int.Input, float: io.Float.Input}
    return kinds[type(default)](row.name, **common, **limits)


def collect_values(rows: Sequence[Widget], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's values by the names of the fields, without optional ones that are not given."""
    return {row.field: values[row.name] for row in rows if row.name in values or not row.optional}


def update_settings(defaults: Settings, rows: Sequence[Widget], values: Mapping[str, Any]) -> Settings:
    """Return the settings with a node's values in these fields. Raises ValueError as the dataclass does."""
    return replace(defaults, **collect_values(rows, values))
