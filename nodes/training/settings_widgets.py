"""Widgets of a settings dataclass: one row each; type and default are the dataclass's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from comfy_api.latest import io

from ..host.widgets import advanced

Settings = TypeVar("Settings")


class Widget(NamedTuple):
    """One field of a settings dataclass as a widget."""

    field: str
    tooltip: str
    limits: Mapping[str, Any] = {}
    """`min`, `max` and `step` of a number, as the host's inputs take them."""
    options: Mapping[str, Any] = {}
    """What a list offers, and the field's value for each."""
    id: str | None = None
    """Of the widget, where the field's name would not do."""

    @property
    def name(self) -> str:
        return self.id or self.field


def choices(values: Sequence[str]) -> dict[str, str]:
    """Options that stand for themselves."""
    return {value: value for value in values}


def widgets(defaults: Any, rows: Sequence[Widget], fold: bool = True) -> list:
    """Inputs for a node's schema; folded away unless they belong on its front."""
    made = [_widget(row, getattr(defaults, row.field)) for row in rows]
    return [advanced(widget) for widget in made] if fold else made


def _widget(row: Widget, default: Any):
    if row.options:
        shown = next(name for name, value in row.options.items() if value == default)
        return io.Combo.Input(row.name, options=list(row.options), default=shown, tooltip=row.tooltip)
    kinds: Mapping[type, Callable] = {bool: io.Boolean.Input, int: io.Int.Input, float: io.Float.Input}
    return kinds[type(default)](row.name, default=default, tooltip=row.tooltip, **row.limits)


def chosen(defaults: Settings, rows: Sequence[Widget], values: Mapping[str, Any]) -> Settings:
    """The settings with a node's values. ValueError as the dataclass raises."""
    given = {row.field: values[row.name] for row in rows}
    return replace(
        defaults, **{row.field: row.options.get(given[row.field], given[row.field]) for row in rows}
    )
