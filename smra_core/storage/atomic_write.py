"""Write files atomically: a path always holds the whole old file or the whole new one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0)  # it can be read only by setting it
os.umask(_UMASK)


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends, that file replaces `path`.

    The data is synced to disk before the file is renamed. If the block raises, `path` stays as it was and
    the temporary file is deleted. A missing folder is created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, as another process may write the same file; the suffix stays for writers that look at it.
    draft = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}.tmp{target.suffix}")
    try:
        yield draft
        with open(draft, "rb+") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        draft.chmod(0o666 & ~_UMASK)  # some writers create files that only their owner can read
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
