"""JSON files of users: read within bounds and by type, written whole."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from mmdit.errors import UserError, one_line
from mmdit.storage.files import write_atomically

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

T = TypeVar("T")
_REQUIRED: Any = object()


class JsonObject(dict[str, Any]):
    """An object of a JSON file that can name itself, and the place in it, in an error: see ``field``."""

    where: str = ""

    @overload
    def field(self, name: str, kind: type[T]) -> T: ...
    @overload
    def field(self, name: str, kind: type[T], default: None) -> T | None: ...
    @overload
    def field(self, name: str, kind: type[T], default: T) -> T: ...
    def field(self, name: str, kind: type[T], default: Any = _REQUIRED) -> Any:
        """A value of a type, or ``default`` where the name is missing or null.

        ``kind``: str, int, float (whole numbers too; finite), bool or list.

        Raises:
            UserError: a value of another type, or none where there is no default; it names file, name, value and type.
        """
        value = self.get(name)
        if value is None:
            if default is not _REQUIRED:
                return default
            raise UserError(f"{self.where}: lacks {name!r}, {_KINDS[kind]}")
        if not _is(value, kind):
            raise UserError(f"{self.where}: {name!r} is {_shown(value)}: give {_KINDS[kind]}")
        return value

    def object(self, name: str, default: Mapping[str, Any] = _REQUIRED) -> JsonObject:
        """An object inside this one. Raises UserError as ``field``."""
        return _object(self.field(name, dict, default), f"{self.where}, {name!r}")

    def list_of(self, name: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """A list of values of a type; ``default`` where the name is missing or null and a default is given.

        Raises:
            UserError: as ``field``.
        """
        values: list[Any] | None = self.field(name, list, default) if default is not None else self.field(name, list)
        for value in values or []:
            if not _is(value, kind):
                raise UserError(f"{self.where}: {name!r} holds {_shown(value)}: each is {_KINDS[kind]}")
        return list(values or [])


def read_json(path: Path, what: str = "", max_bytes: int = MAX_BYTES) -> JsonObject:
    """Read the object that a JSON file holds.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        what: added to the error of a missing file, such as "a model folder needs it".
        max_bytes: a larger file is refused before it is read.

    Raises:
        UserError: no such file, no regular file, one that is too large, not JSON, nested deeper than 64, or no object.
    """
    content = _read(path, what, max_bytes)
    return parse_json(content, str(path))


def parse_json(content: bytes | str, where: str) -> JsonObject:
    """Parse text that holds one JSON object; ``where`` names it in errors. Raises UserError as ``read_json``."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        values = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not readable as JSON: no UTF-8 text ({error})") from None
    except RecursionError:
        raise UserError(f"{where}: not readable as JSON: nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise UserError(f"{where}: not readable as JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: holds a JSON {type(values).__name__}, not an object")
    if _depth(values) > MAX_DEPTH:
        raise UserError(f"{where}: not readable as JSON: nested deeper than {MAX_DEPTH}")
    return _object(values, where)


def write_json(path: Path, values: Any, indent: int = 2) -> None:
    """Write JSON whole; NaN and infinity, which JSON lacks, become null. Raises UserError as ``write_atomically``."""
    write_atomically(path, json_bytes(values, indent))


def json_bytes(values: Any, indent: int = 2) -> bytes:
    """JSON as it is written to files."""
    text = json.dumps(json_safe(values), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # file names need not be UTF-8; JSON has this escape


def json_safe(value: Any) -> Any:
    """Replace NaN and infinities by None and numpy scalars by Python's, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path, what: str, max_bytes: int) -> bytes:
    hint = f"; {what}" if what else ""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO would wait for its writer
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: is no regular file{hint}")
            if status.st_size > max_bytes:
                raise UserError(
                    f"{path}: has {status.st_size} bytes, more than the {max_bytes} that such a file may have"
                )
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None


def _object(values: Mapping[str, Any], where: str) -> JsonObject:
    found = JsonObject(values)
    found.where = where
    return found


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _depth(values: dict[str, Any]) -> int:
    """Levels of containers, counted level by level: a call per level would be as deep as the data."""
    depth, level = 0, [values]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [inner for container in level for inner in _inner(container)]
    return depth


def _inner(container: Any) -> Iterator[Any]:
    for value in container.values() if isinstance(container, dict) else container:
        if isinstance(value, dict | list):
            yield value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
