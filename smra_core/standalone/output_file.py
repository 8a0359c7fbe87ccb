"""Output files and folders of a command, tried before the work starts so that no result is lost."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..storage.atomic_write import write_atomically

log = logging.getLogger("smrabooth")

VIDEO_ENDINGS = (".mp4", ".m4v")
LORA_ENDINGS = (".safetensors", ".sft")


class _EndOfTrial(Exception):
    """Signal that ends a trial, so that its draft is removed and the file stays as it was."""


def check_output_file(path: Path, endings: Sequence[str], size: int = 0) -> None:
    """Make the folder of a file that will be written, and raise ValueError unless it can be written there.

    A draft is opened and removed; a file that is there already stays as it is. `endings` are those that fit
    what will be written, in lower case; `size` is the number of bytes that must be free.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder. Give the path of a file, such as {path / ('out' + endings[0])}."
        )
    if path.suffix.lower() not in endings:
        raise ValueError(
            f"{path} does not end with {' or '.join(endings)}, which says what is in the file. Give "
            f"{path.with_suffix(endings[0])}."
        )
    try:
        with write_atomically(path) as draft:
            draft.write_bytes(b"")
            raise _EndOfTrial
    except _EndOfTrial:
        pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error}). Give another path.") from error
    free = shutil.disk_usage(path.absolute().parent).free
    if free < size:
        raise ValueError(
            f"The disk of {path} has {free / 1e6:.1f} MB free, and the file may take {size / 1e6:.1f} MB. "
            "Free some, or give a path on another disk."
        )


def check_output_folder(folder: Path) -> None:
    """Make a folder that results will be written to; raise ValueError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be used as a folder for results ({error}). Give another folder."
        ) from error


def write_or_rescue(path: Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with the path; if that fails, with a path in a new temporary folder. Return the path used.

    What took long to compute is not thrown away because a disk became full or a folder went away meanwhile.
    """
    try:
        write(path)
        return path
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="smrabooth_")) / path.name
        log.warning("%s cannot be written (%s). The file is written to %s instead.", path, error, rescue)
        write(rescue)
        return rescue
