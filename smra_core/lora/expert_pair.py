"""Names of LoRA files that come in pairs, one for each expert of Wan 2.2.

Trainers mark the two files by `high_noise` and `low_noise`, `-high` and `-low`, `HighNoise` and `LowNoise`
and the like: musubi-tuner, ai-toolkit and lightx2v in the file's name, diffusion-pipe in the folder's.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_MARK = re.compile(
    r"(?<![a-z])(high|low)(?=[-_ .]?noise|[^a-z]|$)|(?<=[a-z0-9])(High|Low)(?=Noise|[^a-z]|$)", re.IGNORECASE
)
"""A word that names an expert: it stands between letters of other words only in camel case."""
_OTHER = {"high": "low", "low": "high"}
_RUN = re.compile(r"_\d+_[0-9a-f]{8}(?=\.\w+$)")
"""End of the names that the training nodes give: steps and run, in which the two files of a pair differ."""


class ExpertFiles(NamedTuple):
    """The files of one LoRA for both experts; twice the same file where it is for both."""

    high: str
    low: str


def find_expert(name: str) -> str | None:
    """Return `high` or `low` where a file's name or folder says for which expert it is, else None.

    A name that says both, such as `high_and_low.safetensors`, says neither.
    """
    marks = {_read_word(match).lower() for match in _find_marks(name)}
    return marks.pop() if len(marks) == 1 else None


def find_pair(name: str, names: Sequence[str]) -> ExpertFiles:
    """Return the files for both experts that belong to a chosen file, by name.

    `names` are the files that are there. A name that marks no expert is one file for both. Where no file has
    the very name of the other expert, one that differs in the steps and the run of our training nodes is
    taken. ValueError when a name marks one expert and there is no file of the other, or more than one.
    """
    expert = find_expert(name)
    if expert is None:
        return ExpertFiles(name, name)
    other = _find_other(name, expert, names)
    return ExpertFiles(name, other) if expert == "high" else ExpertFiles(other, name)


def _find_other(name: str, expert: str, names: Sequence[str]) -> str:
    wanted = _swap_marks(name)
    exact = [each for each in names if each.casefold() == wanted.casefold()]
    similar = [each for each in names if _RUN.search(name) and _drop_run(each) == _drop_run(wanted)]
    found = exact[:1] or similar
    if not found:
        raise ValueError(
            f"{name} is for the {expert}-noise expert by its name, and {wanted} for the other expert is not "
            "there. Put that file beside it, or rename the file if it is for both experts."
        )
    if len(found) > 1:
        raise ValueError(
            f"{name} is for the {expert}-noise expert by its name, and {len(found)} files may be its other "
            f"one: {', '.join(found[:5])}. Rename the right one to {wanted}."
        )
    return found[0]


def _drop_run(name: str) -> str:
    """Return the name without the steps and the run that our training nodes end it with, for comparisons."""
    return _RUN.sub("", name.casefold())


def mark_expert(name: str, expert: str | None) -> str:
    """Return a LoRA's name with `_high_noise` or `_low_noise` at its end, unless it marks the expert already.

    Without an expert the name stays as it is. ValueError when it marks the other expert.
    """
    marked = find_expert(name)
    if expert is None or marked == expert:
        return name
    if marked is not None:
        raise ValueError(
            f"The name {name!r} is of the {marked}-noise expert, and the noise range is that of the "
            f"{expert}-noise expert. Change the name or the noise range."
        )
    return f"{name}_{expert}_noise"


def _find_marks(name: str) -> list[re.Match]:
    return [match for match in _MARK.finditer(name) if _is_camel_or_apart(name, match)]


def _is_camel_or_apart(name: str, match: re.Match) -> bool:
    before = name[match.start() - 1 : match.start()]
    return not before.isalpha() or (before.islower() and name[match.start()].isupper())


def _read_word(match: re.Match) -> str:
    return match[1] or match[2]


def _swap_marks(name: str) -> str:
    """Return the name with the word of the other expert, in the same case."""
    swapped = name
    for match in reversed(_find_marks(name)):
        swapped = swapped[: match.start()] + _name_other(_read_word(match)) + swapped[match.end() :]
    return swapped


def _name_other(word: str) -> str:
    other = _OTHER[word.lower()]
    if word.isupper():
        return other.upper()
    return other.title() if word[0].isupper() else other
