"""The one exception that means "your input is wrong", which the command line prints as one line; and others' errors as one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Wrong input from the user. The message names what is wrong, the value given, and what would be right."""

    def __str__(self) -> str:
        text = super().__str__()  # torch raises a loader process's error again with its whole traceback as the message
        if text.startswith("Caught UserError in"):
            text = text.rpartition(f"{__name__}.UserError: ")[2]
        return " ".join(filter(None, map(str.strip, text.splitlines())))  # a library's reason may have several lines


def first_line(error: BaseException, limit: int = 300) -> str:
    """What an exception of a library says, without the pages that some add: its first line, or its type's name.

    A first line that announces the next ones (it ends with a colon) has the second line after it.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= limit else f"{text[:limit]}…"


def one_line(error: BaseException, limit: int = 300) -> str:
    """All that an exception says, as one line: for those that say where something is wrong at their end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, the machine's or a GPU's, was not enough."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, of GPUs
        return True
    said = str(error).lower()  # PyTorch has no class for the others
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)


def nearest_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` of ``names`` that are spelt most like ``name``, best first; never empty if ``names`` is not."""
    candidates = list(names)
    return difflib.get_close_matches(name, candidates, n=count, cutoff=0.4) or candidates[:count]


def check_choice(key: str, names: Sequence[str]) -> None:
    """Raise UserError for a choice of names, ``key`` to the user, that is empty or has one of them twice."""
    if not names:
        raise UserError(f"{key} is an empty list: name at least one, or leave it out for all")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{key} names {name!r} twice: give each once")
        seen.add(name)


def unknown_name(kind: str, name: object, names: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a table, with the nearest names and the size of the table."""
    candidates = list(names)
    if not candidates:
        return UserError(f"unknown {kind} {name!r}: there is none to choose from")
    listed = ", ".join(candidates if len(candidates) <= 12 else [*nearest_names(str(name), candidates, 5), "…"])
    return UserError(
        f"unknown {kind} {name!r}: did you mean {nearest_names(str(name), candidates, 1)[0]!r}? Known: {listed}"
    )
