"""Files that appear whole or not at all, and that others may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its name when the context ends well; until then an older one of that name stays.

    What a killed run leaves under the temporary name is overwritten by the next one. An error of the system names ``path``,
    which a full disk alone does not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, as ``atomic_file`` does."""
    with atomic_file(path) as file:
        file.write(content)


def share_weights(folder: Path) -> None:
    """Give each safetensors file below ``folder`` the mode of a JSON file beside it or above.

    safetensors makes its files readable by their owner alone, which a group that shares a disk would find out late.
    """
    for weights in folder.rglob("*.safetensors"):
        beside = next((path for place in (weights.parent, folder) for path in place.glob("*.json")), None)
        if beside is not None:
            weights.chmod(beside.stat().st_mode & 0o777)
