"""JSON objects of other people's folders: bounded, without NaN, and checked to be what they should be."""

from __future__ import annotations

import json
import os
from typing import Any

from mmdit.errors import UserError
from mmdit.storage.regular import read_bounded

MAX_BYTES = 1 << 24
MAX_DEPTH = 64


def load_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for what is none, is nested more than 64 deep, or has a key twice."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    if _depth_bound(text) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _depth_bound(text: str) -> int:
    """Deepest nesting of brackets outside strings."""
    depth = deepest = 0
    in_string = escaped = False
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return 0
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return values


def read_json_object(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises UserError naming the path."""
    content = read_bounded(path, max_bytes)
    try:
        values = load_json(content)
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a JSON {type(values).__name__}, not an object")
    return values
