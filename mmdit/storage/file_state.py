"""What a file held when something was made from it: size, time of change and a hash of the content."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple


class FileState(NamedTuple):
    """``size`` in bytes; ``time`` of the last change, nanoseconds; ``digest`` of the content, "" = not known."""

    size: int
    time: int
    digest: str


def read_state(path: str | os.PathLike[str], known: FileState | None = None) -> FileState | None:
    """Return a file's state, None if it is not a regular file or can't be read.

    Its content is read only where size or time are not those of ``known``.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        if known is not None and (status.st_size, status.st_mtime_ns) == known[:2]:
            return known
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except (OSError, ValueError):
        return None
    return FileState(status.st_size, status.st_mtime_ns, digest.hexdigest())
