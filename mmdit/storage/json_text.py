"""JSON that others wrote: read within bounds, every failure one line."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

from mmdit.errors import UserError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64
BOM = b"\xef\xbb\xbf"


def parse_json(content: bytes, constants: bool = False) -> Any:
    """Parse UTF-8 text, with or without a byte order mark; ``constants``: NaN and Infinity are numbers, as Python writes them.

    Raises:
        ValueError: not UTF-8, not JSON, NaN or infinity (1e999 too), a key twice, or lists and objects more than 64 deep;
            its text
            is the reason.
    """
    try:
        text = content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not text.strip():
        raise ValueError("not JSON: empty")
    try:
        constant = float if constants else _no_constant
        values = json.loads(text, parse_constant=constant, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # of Python's: a number with thousands of digits, with advice for programmers
        reason = str(error).partition(";")[0]
        raise ValueError(f"not JSON: {reason}") from None
    if _depth_exceeds(values, MAX_DEPTH):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return values


def read_json(path: Path, advice: str = "", max_bytes: int = MAX_BYTES, constants: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        advice: what to do, at the end of the message.
        max_bytes: a larger file is refused before it is read.
        constants: as for ``parse_json``.

    Raises:
        UserError: a file that is missing, not regular, too large, or what ``parse_json`` refuses; the message names the file.
    """
    try:
        return parse_json(read_bounded(path, max_bytes, advice), constants)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}{advice and f'; {advice}'}") from None


def read_bounded(path: Path, max_bytes: int, advice: str = "") -> bytes:
    """Read a file of at most ``max_bytes``. Raises UserError as ``read_json``; a pipe or a device is never opened."""
    rest = advice and f"; {advice}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is {_kind(status.st_mode)}, not a file{rest}")
        if status.st_size > max_bytes:
            raise UserError(f"{path}: has {status.st_size} bytes, at most {max_bytes} are read{rest}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file{rest}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}{rest}") from None


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "a device")


def has_surrogate(text: str) -> bool:
    """Tell whether a text holds half a surrogate pair: JSON can write it, but it is not a character."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def quoted(value: Any, length: int = 80) -> str:
    """Return ``repr`` of a value from outside, on one line and cut where it is long."""
    if isinstance(value, (list, dict)) and len(value) > length:
        return f"a {type(value).__name__} of {len(value)} entries"
    text = repr(value[: length + 1] if isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[:length]}…"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(digits: str) -> float:
    """Python reads 1e999 as infinity, which JSON has no word for."""
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {quoted(twice)} appears twice")
    return values


def _depth_exceeds(values: Any, limit: int) -> bool:
    level = [values]
    for _ in range(limit):
        nested = [
            outer.values() if isinstance(outer, dict) else outer for outer in level if isinstance(outer, (dict, list))
        ]
        level = [inner for outer in nested for inner in outer]
        if not level:
            return False
    return any(isinstance(inner, (dict, list)) for inner in level)
