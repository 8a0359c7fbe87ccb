"""Options for the fields of settings, and the settings read from them."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..lora.plan import SparsePlan
from ..miniature import small_settings
from ..miniature.model_files import MINIATURE
from ..training.motion_settings import MotionSettings
from ..training.sura import SubjectSettings
from ..wan.noise_range import NoiseRange
from ..wan.sampler import SamplingSettings
from .options import add_option, wrap_parser

Settings = TypeVar("Settings")

MINIATURE_SIZES: Mapping[type, Any] = {
    SubjectSettings: small_settings.SUBJECT,
    MotionSettings: small_settings.MOTION,
    SamplingSettings: small_settings.SAMPLING,
}
"""Settings whose sizes are the defaults for the miniature."""
SIZES = ("width", "height", "frames")


def add_settings(parser: argparse.ArgumentParser, defaults: Any, names: Sequence[str] = ()) -> None:
    """Add an option for each field of a settings dataclass, or for those named, with default and help.

    An option that is not given is None, so that `read_settings` can choose the default by the model.
    """
    small = MINIATURE_SIZES.get(type(defaults))
    for field in dataclasses.fields(defaults):
        if names and field.name not in names:
            continue
        option, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        default = getattr(defaults, field.name)
        if isinstance(default, bool):
            text = f"{text} (default: {'on' if default else 'off'})".replace("%", "%%")
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text, default=None)
            continue
        is_parsed = isinstance(default, SparsePlan | NoiseRange)
        value_type = wrap_parser(type(default).parse) if is_parsed else type(default)
        shown = str(default)
        if small is not None and field.name in SIZES:
            shown += f"; {getattr(small, field.name)} for the miniature"
        add_option(parser, option, text, shown=shown, type=value_type)


def read_settings(args: argparse.Namespace, defaults: Settings) -> Settings:
    """Return `defaults` with the options that were given and that `add_settings` added.

    The sizes of the miniature are its own, unless they are given. Raises ValueError for bad values.
    """
    small = MINIATURE_SIZES.get(type(defaults))
    values = {}
    if small is not None and args.model in (None, MINIATURE):
        values = {name: getattr(small, name) for name in SIZES if hasattr(small, name)}
    for field in dataclasses.fields(defaults):  # type: ignore[arg-type]
        given = getattr(args, field.name, None)
        if given is not None:
            values[field.name] = given
    return dataclasses.replace(defaults, **values)  # type: ignore[type-var]
