"""The YAML file of a grid: which subjects and motions, at which settings, with which prompts and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LORA_ENDING = ".safetensors"
MODEL_OPTIONS = ("model", "vae", "text-encoder", "device", "dtype")
SET_BY_THE_GRID = {
    "out", "cache", "name", "json", "seed", "video", "subject", "motion", "prompt", *MODEL_OPTIONS
}  # fmt: skip
"""Options of commands that the grid gives itself, so that no list of options may hold them."""
_KEYS = {
    "title", "out", "model", "vae", "text_encoder", "device", "dtype", "subjects", "motions",
    "subject_options", "motion_options", "settings", "prompts", "seeds", "sampling", "gpus", "metrics",
}  # fmt: skip
_SOURCE_KEYS = {"data", "word", "options"}
_GPU_KEYS = {"training", "cell"}


@dataclass(frozen=True)
class Source:
    """A subject or a motion of a grid."""

    name: str
    path: Path | None
    """Data to train on, a LoRA file that is used as it is, or None for no LoRA."""
    word: str
    """Text that stands for it in the prompts."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of its training beside those of all."""

    @property
    def is_trained(self) -> bool:
        """Whether a LoRA is trained on the data."""
        return self.path is not None and self.path.suffix != LORA_ENDING


@dataclass(frozen=True)
class GridFile:
    """What a grid file says, with paths made absolute."""

    title: str
    out: Path
    model: Mapping[str, Any]
    """Options that choose the model, by their names on the command line."""
    subjects: Sequence[Source]
    motions: Sequence[Source]
    training: Mapping[str, Mapping[str, Any]]
    """Options of all trainings of a purpose, `subject` and `motion`."""
    settings: Mapping[str, Mapping[str, Any]]
    """Options of `sample` by the name of the setting."""
    prompts: Sequence[str]
    seeds: Sequence[int]
    sampling: Mapping[str, Any]
    """Options of `sample` for all cells."""
    gpus: Mapping[str, int]
    """Number of GPUs of a `training` and of a `cell`."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Options of `evaluate` that give the networks of the metrics."""


def read_grid_file(path: Path) -> GridFile:
    """Read a grid file; ValueError, with the key, for what is missing, unknown or of another kind.

    Relative paths start at the folder of the file.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML that can be read: {error}") from error
    content = _check_keys(content, _KEYS, f"{path}")
    for key in ("subjects", "motions", "prompts"):
        if not content.get(key):
            raise ValueError(f"{path} has no {key}. A grid needs subjects, motions and prompts.")
    folder = path.resolve().parent
    return GridFile(
        title=str(content.get("title", path.stem)),
        out=folder / str(content.get("out", f"{path.stem}_grid")),
        model=_read_model(content, folder),
        subjects=_read_sources(content["subjects"], folder, "subjects"),
        motions=_read_sources(content["motions"], folder, "motions"),
        training={
            purpose: _read_options(content.get(f"{purpose}_options"), f"{purpose}_options")
            for purpose in ("subject", "motion")
        },
        settings={
            str(name): _read_options(options, f"settings: {name}")
            for name, options in (content.get("settings") or {"default": {}}).items()
        },
        prompts=[str(prompt) for prompt in _read_list(content["prompts"], "prompts")],
        seeds=_read_seeds(content.get("seeds", [1])),
        sampling=_read_options(content.get("sampling"), "sampling"),
        gpus=_read_gpus(content.get("gpus")),
        metrics=_read_options(content.get("metrics"), "metrics"),
    )


def _check_keys(content: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold keys with values, and holds {content!r}.")
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise ValueError(
            f"{where} has unknown keys: {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
        )
    return content


def _read_model(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    values = {name: content.get(name.replace("-", "_")) for name in MODEL_OPTIONS}
    for name in ("model", "vae", "text-encoder"):
        if values[name] is not None and (folder / str(values[name])).exists():
            values[name] = folder / str(values[name])
    return {name: value for name, value in values.items() if value is not None}


def _read_sources(content: Any, folder: Path, key: str) -> list[Source]:
    if not isinstance(content, dict):
        raise ValueError(f"{key} must give a path for each name, and holds {content!r}.")
    sources = []
    for name, about in content.items():
        values = about if isinstance(about, dict) else {"data": about}
        _check_keys(values, _SOURCE_KEYS, f"{key}: {name}")
        path = values.get("data")
        source = Source(
            str(name), None if path is None else folder / str(path), str(values.get("word", name)),
            _read_options(values.get("options"), f"{key}: {name}: options"),
        )  # fmt: skip
        if source.path is not None and not source.path.exists():
            raise ValueError(f"{key}: {name}: {source.path} is not there.")
        sources.append(source)
    return sources


def _read_options(content: Any, where: str) -> dict[str, Any]:
    options = {} if content is None else content
    if not isinstance(options, dict):
        raise ValueError(f"{where} must hold options with values, and holds {options!r}.")
    named = {str(name).replace("_", "-"): value for name, value in options.items()}
    taken = sorted(SET_BY_THE_GRID & set(named))
    if taken:
        raise ValueError(f"{where} sets {', '.join(taken)}, which the grid itself sets. Remove it there.")
    return named


def _read_list(content: Any, key: str) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{key} must be a list, and is {content!r}.")
    return content


def _read_seeds(content: Any) -> list[int]:
    seeds = _read_list(content, "seeds")
    if not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"seeds must be whole numbers, one at least, and are {seeds!r}.")
    return list(dict.fromkeys(seeds))


def _read_gpus(content: Any) -> dict[str, int]:
    given = _check_keys({} if content is None else content, _GPU_KEYS, "gpus")
    gpus = {"training": 1, "cell": 1} | given
    if not all(type(count) is int and count >= 1 for count in gpus.values()):
        raise ValueError(f"gpus must be whole numbers of at least 1, and are {gpus!r}.")
    return gpus
