"""Files that are either the old one or the new one, never a half-written one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name to write to; when the block ends, what was written takes the place of `path`.

    The bytes are on the disk before the name changes. If the block raises, `path` is as before and the
    temporary file is gone. The folder is made when it is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # One of a kind, as another process may write the same file; writers that go by the ending still see it.
    draft = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}.tmp{target.suffix}")
    try:
        yield draft
        with open(draft, "rb+") as written:  # Windows syncs only what is open for writing
            os.fsync(written.fileno())
        draft.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner can read
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
