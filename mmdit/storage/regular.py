"""Files of the user's, opened only where they are files: a FIFO would wait for ever, a device never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mmdit.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def file_size(path: str | os.PathLike[str]) -> int:
    """Size in bytes of a regular file, links followed.

    Raises:
        UserError: there is nothing, or something that is no file.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(status.st_mode)), "no file")
        raise UserError(f"{path}: is {kind}; give a file")
    return status.st_size


def read_bounded(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a regular file of at most ``max_bytes``. Raises UserError where it is none, larger, or can't be read."""
    size = file_size(path)
    if size > max_bytes:
        raise UserError(f"{path}: holds {size} bytes; at most {max_bytes} are read")
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from None
    if len(content) > max_bytes:  # it grew
        raise UserError(f"{path}: holds more than {max_bytes} bytes, which are read at most")
    return content
