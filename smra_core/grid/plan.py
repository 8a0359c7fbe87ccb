"""The plan of a grid: trainings and cells as commands, each with a key that names its result by content."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..miniature.model_files import MINIATURE, MINIATURE_FILES
from ..storage.content_hash import fingerprint_weights, hash_content
from ..storage.file_name import make_file_name
from .grid_file import GridFile, Source

_KEY_LETTERS = 20


@dataclass(frozen=True)
class Training:
    """A LoRA that a grid trains."""

    purpose: str
    """`subject` or `motion`."""
    source: Source
    command: tuple[str, ...]
    """Arguments of `python -m smra_core`."""
    key: str
    """Hash of the command, the model and the state of the data's files."""

    @property
    def name(self) -> str:
        """Name in messages and of the log file."""
        return f"{self.purpose} {self.source.name}"


@dataclass(frozen=True)
class Cell:
    """One video of a grid."""

    subject: Source
    motion: Source
    setting: str
    prompt: str
    """Prompt with the words of subject and motion."""
    prompt_name: str
    """Prompt as the grid file has it, which is the same in all cells that are compared."""
    seed: int

    @property
    def name(self) -> str:
        """Name in messages and of the log file."""
        return f"{self.subject.name}, {self.motion.name}, {self.setting}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Trainings and cells of a grid, and where their results are."""

    file: GridFile
    trainings: Sequence[Training]
    cells: Sequence[Cell]
    model_state: str
    """Hash of the model's weights."""
    trained: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)
    """LoRA files that were found, by the key of their training: a grid of 1,000 cells asks often."""

    def find_lora(self, purpose: str, source: Source) -> Path | None:
        """Return the LoRA file of a subject or motion, or None where it is not trained yet, or has none."""
        if not source.is_trained:
            return source.path
        training = self.find_training(purpose, source)
        record = self.file.out / "trainings" / f"{training.key}.json"
        if training.key not in self.trained and record.is_file():
            path = Path(json.loads(record.read_text(encoding="utf-8"))["path"])
            if path.is_file():
                self.trained[training.key] = path
        return self.trained.get(training.key)

    def find_training(self, purpose: str, source: Source) -> Training:
        """Return the training of a subject or motion."""
        return next(each for each in self.trainings if (each.purpose, each.source) == (purpose, source))

    def is_ready(self, cell: Cell) -> bool:
        """Return whether the LoRAs of a cell are there."""
        pairs = (("subject", cell.subject), ("motion", cell.motion))
        return all(source.path is None or self.find_lora(purpose, source) for purpose, source in pairs)

    def make_command(self, cell: Cell) -> list[str]:
        """Return the command that samples a cell whose LoRAs are there, but for the video's path."""
        loras: list[str] = []
        for purpose, source in (("subject", cell.subject), ("motion", cell.motion)):
            path = self.find_lora(purpose, source)
            loras += [f"--{purpose}", str(path)] if path else []
        options = {**self.file.sampling, **self.file.settings[cell.setting], "seed": cell.seed}
        # The prompt follows --, because it may begin with a dash.
        return ["sample", *loras, *make_options(options), *make_model_options(self.file), "--", cell.prompt]

    def find_video(self, cell: Cell) -> Path:
        """Return the path of a ready cell's video, named after all that the video depends on.

        These are the model's weights, the contents of the LoRA files, the prompt, the seed and the options.
        """
        pairs = (("subject", cell.subject), ("motion", cell.motion))
        loras = {purpose: _hash_lora(self.find_lora(purpose, source)) for purpose, source in pairs}
        options = {**self.file.sampling, **self.file.settings[cell.setting]}
        about = {
            "model": self.model_state,
            "dtype": str(self.file.model.get("dtype", "")),
            "loras": loras,
            "options": {name: str(value) for name, value in options.items()},
            "prompt": cell.prompt,
            "seed": cell.seed,
        }
        return self.file.out / "cells" / f"{make_key(about)}.mp4"


def make_plan(file: GridFile) -> Plan:
    """Plan the trainings and cells of a grid; ValueError for a prompt that cannot be filled in."""
    model_state = fingerprint_model(file)
    trainings = [
        make_training(file, purpose, source, model_state)
        for purpose, sources in (("subject", file.subjects), ("motion", file.motions))
        for source in sources
        if source.is_trained
    ]
    return Plan(file, trainings, list(list_cells(file)), model_state)


def list_cells(file: GridFile) -> Iterator[Cell]:
    """List the cells seed by seed, so that an unfinished grid has whole seeds."""
    for seed, prompt, setting, subject, motion in itertools.product(
        file.seeds, file.prompts, file.settings, file.subjects, file.motions
    ):
        try:
            text = prompt.format(subject=subject.word, motion=motion.word)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                f"The prompt {prompt!r} cannot be filled in ({error!r}). It may hold {{subject}} and "
                "{motion}; other braces are written twice."
            ) from error
        yield Cell(subject, motion, setting, text, prompt, seed)


def make_training(file: GridFile, purpose: str, source: Source, model_state: str) -> Training:
    """Return the training of a subject or motion."""
    assert source.path is not None
    options = {**file.training[purpose], **source.options, "name": make_file_name(source.name)}
    command = (
        f"train-{purpose}", str(source.path), *make_options(options), *make_model_options(file),
    )  # fmt: skip
    about = {"command": command, "model": model_state, "data": list_file_states(source.path)}
    return Training(purpose, source, command, make_key(about))


def list_file_states(path: Path) -> list[str]:
    """Return name, size and time of change of a file or of all files in a folder and of a text beside it."""
    beside = [path.with_suffix(".txt"), path.parent / "metadata.csv"] if path.is_file() else []
    files = sorted(path.rglob("*")) if path.is_dir() else [path, *beside]
    return [
        f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.is_file()
    ]


def _hash_lora(path: Path | None) -> str:
    return "" if path is None else _hash_file(path, path.stat().st_mtime_ns)


@cache
def _hash_file(path: Path, changed: int) -> str:
    return hash_content(path)


def fingerprint_model(file: GridFile) -> str:
    """Return a hash of the model's weights; of a path that is not there, of the path itself."""
    paths = [file.model.get(name) for name in ("model", "vae", "text-encoder")]
    if paths[0] in (None, MINIATURE):
        return f"{MINIATURE_FILES.transformer_fingerprint} {MINIATURE_FILES.vae_fingerprint}"
    return " ".join(
        fingerprint_weights(Path(path)) if Path(path).exists() else str(path) for path in paths if path
    )


def make_key(about: Mapping[str, Any]) -> str:
    """Return a file name's worth of the hash of JSON values."""
    text = json.dumps(about, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LETTERS]


def make_model_options(file: GridFile) -> list[str]:
    """Return the options that choose the model and the folder of results."""
    return make_options({**file.model, "out": file.out})


def make_options(values: Mapping[str, Any]) -> list[str]:
    """Return options as arguments: true and false as --x and --no-x, lists joined by commas."""
    arguments = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            arguments.append(f"--{name}={text}")
    return arguments
