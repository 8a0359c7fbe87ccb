"""Write files atomically: a path always holds the whole old file or the whole new one."""

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

_UMASK = os.umask(0)  # it can be read only by setting it
os.umask(_UMASK)

_ABANDONED = 24 * 3600
"""Seconds without a change after which a draft is taken for one that a killed process has left behind: no
file of this pack takes as long to write.
"""
_LOCK_WAITS = (0.1, 0.3, 1.0, 2.0)
"""Seconds to wait before each new try to replace a file that another program holds open (on Windows alone):
virus scanners and previews let go of it soon.
"""
_FULL = {errno.ENOSPC, errno.EDQUOT}
"""Numbers of the errors that mean that there is no space left: on the disk, or for this user."""


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends, that file replaces `path`.

    The data is synced to disk before the file is renamed. If the block raises, `path` stays as it was and
    the temporary file is deleted. A missing folder is created. Temporary files of the same path that a
    killed process left behind a day ago or earlier are deleted, too. Raises OSError, with the path and the
    way out, when the disk is full, safetensors cannot write (its own error is no OSError), or another program
    holds the old file open, as Windows allows; the new content is then kept beside it.
    """
    target = Path(path)
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_drafts(target)
        # A unique name, as another process may write the same file; the suffix stays for writers that look
        # at it.
        draft = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}.tmp{target.suffix}")
        try:
            yield draft
            with open(draft, "rb+") as file:  # Windows syncs only files that are open for writing
                os.fsync(file.fileno())
            draft.chmod(0o666 & ~_UMASK)  # some writers create files that only their owner can read
            _replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)


def _replace(draft: Path, target: Path) -> None:
    """Rename the draft to the target; where that stays locked, keep the draft beside it and raise OSError."""
    for wait in _LOCK_WAITS:
        try:
            return os.replace(draft, target)
        except PermissionError:
            time.sleep(wait)
    try:
        os.replace(draft, target)
    except PermissionError as error:
        kept = target.with_name(f"{target.stem}_{uuid.uuid4().hex[:6]}{target.suffix}")
        os.replace(draft, kept)
        raise OSError(
            f"{target} cannot be replaced: another program holds it open. The new content is in {kept.name} "
            "in the same folder. Close the program and rename the file, or start again."
        ) from error


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing to `path` inside the block into an OSError that says what to do: a full disk,
    and safetensors' own error, which is no OSError. Other errors pass as they are.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number in _FULL or "No space left" in str(error) or "os error 28" in str(error):
            raise OSError(
                f"{path} cannot be written: no space is left on its disk. What was written before is kept. "
                "Free some space and start again."
            ) from error
        if isinstance(error, SafetensorError):
            raise OSError(f"{path} cannot be written ({error}). Check its folder and its disk.") from error
        raise


def remove_drafts(folder: Path) -> list[str]:
    """Delete all temporary files of `write_atomically` in a folder, and return their names.

    Call it only where no other process writes to the folder.
    """
    drafts = sorted(folder.glob(".*.tmp*"))
    for draft in drafts:
        draft.unlink(missing_ok=True)
    return [draft.name for draft in drafts]


def _remove_abandoned_drafts(target: Path) -> None:
    """Delete temporary files of this path that have not changed for a day."""
    prefix, suffix = f".{target.stem}.", f".tmp{target.suffix}"
    # Not by a pattern, because names of users' files can contain brackets.
    for draft in target.parent.iterdir():
        if draft.name.startswith(prefix) and draft.name.endswith(suffix):
            with suppress(OSError):  # another process may have deleted it, or hold it open
                if time.time() - draft.stat().st_mtime > _ABANDONED:
                    draft.unlink()
