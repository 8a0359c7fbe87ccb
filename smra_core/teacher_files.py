"""Which weight file each teacher comes from: the one that was given, or the miniature's."""

from pathlib import Path

from .standalone.model_files import MINIATURE, WEIGHTS

_OPTIONS = {"dinov2": "--dinov2", "sea_raft": "--sea-raft"}


def teacher_file(kind: str, given: Path | None, model: str) -> Path:
    """File of `dinov2` or `sea_raft`; ValueError when none was given for a real model, or it is not there."""
    if given is None and model == MINIATURE:
        return WEIGHTS / f"{kind}_miniature.safetensors"
    if given is None:
        raise ValueError(
            f"Training on {model} needs the weights of {kind}. Give their file with {_OPTIONS[kind]}."
        )
    if not given.is_file():
        raise ValueError(f"{given} is not a file. Give the weights of {kind} with {_OPTIONS[kind]}.")
    return given
