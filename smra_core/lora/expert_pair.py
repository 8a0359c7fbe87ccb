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

    `names` are the files that are there. A name that marks no expert is one file for both. ValueError when it
    marks one expert and the file of the other is not there.
    """
    expert = find_expert(name)
    if expert is None:
        return ExpertFiles(name, name)
    wanted = _swap_marks(name).casefold()
    other = next((each for each in names if each.casefold() == wanted), None)
    if other is None:
        raise ValueError(
            f"{name} is for the {expert}-noise expert by its name, and {_swap_marks(name)} for the other "
            "expert is not there. Put that file beside it, or rename the file if it is for both experts."
        )
    return ExpertFiles(name, other) if expert == "high" else ExpertFiles(other, name)


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
