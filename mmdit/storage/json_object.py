"""Objects of JSON files: read by name and type, written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from mmdit.errors import UserError
from mmdit.storage.files import write_atomically
from mmdit.storage.json_text import MAX_BYTES, quoted, read_json

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

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where

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
            UserError: a value of another type, or none without a default; it names file, name, value and type.
        """
        value = self.get(name)
        if value is None:
            if default is not _REQUIRED:
                return default
            raise UserError(f"{self.where}: lacks {name!r}, {_KINDS[kind]}")
        if not _is(value, kind):
            raise UserError(f"{self.where}: {name!r} is {quoted(value)}: give {_KINDS[kind]}")
        return value

    def object(self, name: str, default: Mapping[str, Any] = _REQUIRED) -> JsonObject:
        """An object inside this one. Raises UserError as ``field``."""
        return JsonObject(self.field(name, dict, default), f"{self.where}, {name!r}")


def read_object(path: Path, advice: str = "", max_bytes: int = MAX_BYTES, *, constants: bool = False) -> JsonObject:
    """Read the object that a JSON file holds; arguments and errors as ``read_json``, and for anything but an object."""
    values = read_json(path, advice, max_bytes, constants=constants)
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a JSON {type(values).__name__}, not an object{advice and f'; {advice}'}")
    return JsonObject(values, str(path))


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


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names as one, joined by dots, each behind ``prefix``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
