"""Where code is looked for: never in the working directory, which may be a folder of somebody's data.

``python -m`` and ``torchrun -m`` put it first, ``python -c`` and an empty entry of PYTHONPATH too: a ``yaml.py`` beside a
dataset would run instead of the library. Imports nothing that the interpreter has not loaded before the first line.
"""

from __future__ import annotations

import os
import sys

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _is_working_directory(entry: str) -> bool:
    try:
        return entry in ("", ".") or os.path.samefile(entry, os.getcwd())
    except OSError:
        return False


def _is_needed() -> bool:
    """Whether this package was found through the working directory, as in a checkout that is not installed."""
    return _is_working_directory(_PACKAGE_PARENT)


def without_working_directory(path: list[str]) -> list[str]:
    """A search path without "", "." and, in first place, the working directory; unchanged if this package lives there.

    A later entry that names the directory in full was put there by the user.
    """
    if _is_needed():
        return list(path)
    kept = path[1:] if path and _is_working_directory(path[0]) else path
    return [entry for entry in kept if entry not in ("", ".")]


def leave_working_directory() -> None:
    """Take the working directory off this process's search path, and off that of the processes it starts."""
    if not _is_needed():
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # known to Python 3.11 and later
    sys.path[:] = without_working_directory(sys.path)


def runs_this_package() -> bool:
    """Whether ``python -m`` was told to run a module of this package, also while it still looks for it."""
    words = sys.orig_argv[1:]
    # Options of the interpreter come before -m: a file's name would end them.
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == "-m":
            return following.partition(".")[0] == "mmdit"
        if word.startswith("-m"):
            return word[2:].partition(".")[0] == "mmdit"
        if not word.startswith("-"):
            return False
    return False
