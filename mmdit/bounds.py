"""Numbers by what they may be, as types: the command line refuses all others while it parses, and ``check_bounds`` in Python.

jsonargparse's types are subclasses of int and float; to a type checker they are int and float.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmdit.errors import UserError

__all__ = [
    "MAX_DEVICES",
    "MAX_SEED",
    "RIGHT",
    "AtATime",
    "Batch",
    "ClosedUnitInterval",
    "Decay",
    "Devices",
    "InferenceSteps",
    "Layers",
    "Nodes",
    "NonNegativeInt",
    "NonNegativeNumber",
    "PositiveInt",
    "PositiveNumber",
    "Rows",
    "Seed",
    "TokenCount",
    "TrainingSteps",
    "Width",
    "Workers",
    "check_bounds",
    "explain",
    "plain",
]

MAX_SEED = 2**63 - 1
MAX_DEVICES = 4096
# Whole numbers: least and most. More is a slip, which would take all memory, or days, before it is noticed.
_WHOLE = {
    "Seed": (0, MAX_SEED),
    "AtATime": (1, 10**6),  # samples that go through a frozen network, or a training step, together
    "Batch": (1, 65_536),  # samples that are generated together
    "Devices": (1, MAX_DEVICES),
    "InferenceSteps": (1, 10**4),
    "Layers": (1, 2**14),
    "Nodes": (1, 100_000),
    "Rows": (0, 10**6),
    "TokenCount": (1, 8192),  # of a text that a model writes
    "TrainingSteps": (1, 10**8),
    "Width": (1, 2**20),
    "Workers": (0, 1024),
}

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    Seed = int
    AtATime = int
    Batch = int
    Devices = int
    InferenceSteps = int
    Layers = int
    Nodes = int
    Rows = int
    TokenCount = int
    TrainingSteps = int
    Width = int
    Workers = int
    PositiveNumber = float
    NonNegativeNumber = float
    ClosedUnitInterval = float
    Decay = float
else:
    from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt, restricted_number_type

    for _name, (_least, _most) in _WHOLE.items():
        globals()[_name] = restricted_number_type(_name, int, [(">=", _least), ("<=", _most)])
    PositiveNumber = restricted_number_type("PositiveNumber", float, [(">", 0), ("<", math.inf)])
    NonNegativeNumber = restricted_number_type("NonNegativeNumber", float, [(">=", 0), ("<", math.inf)])
    Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", 1)])

# What would be right, by the type's name: all that the parser's message tells us.
RIGHT = {
    "PositiveInt": "at least 1",
    "NonNegativeInt": "at least 0",
    **{name: f"{least} to {most}" for name, (least, most) in _WHOLE.items()},
    "PositiveNumber": "a number above 0",
    "NonNegativeNumber": "a number, at least 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "Decay": "a number from 0 to below 1",
}


def check_bounds(config: Any) -> None:
    """Check the numbers of a dataclass and of those in it. Raises UserError naming the key, its value and what is right."""
    for key, value, hint in _numbers(config, ""):
        try:
            hint(value)
        except (ValueError, TypeError):
            raise UserError(f"{key} is {value!r}: give {RIGHT[hint.__name__]}") from None


def explain(message: str, given: str | None = None) -> str | None:
    """Return what would be right instead of a value, from the parser's message about it: "is 0: give at least 1".

    ``given``: the value, where the message does not say it. None: the message is not about such a number.
    """
    match = re.search(r"Not of type (\w+): (?:(.*?) does not conform|)", message)
    if match is None or match[1] not in RIGHT:
        return None
    conforms = "does not conform" in message
    found = re.search(r"(?:: |not )'(.*)'$", message)  # of what int() and float() say about text, and about other types
    value = (
        given
        or match[2]
        or {"NoneType": "null", "list": "a list", "dict": "keys with values"}.get(
            found[1] if found else "", found[1] if found else "another value"
        )
    )
    kind = "a whole number, " if match[1] in (*_WHOLE, "PositiveInt", "NonNegativeInt") and not conforms else ""
    return f"is {value}: give {kind}{RIGHT[match[1]]}"


def plain(value: Any) -> Any:
    """Turn numbers of these types into Python's own, at any depth: files and checkpoints take no others."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            object.__setattr__(value, field.name, plain(getattr(value, field.name)))
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    name = type(value).__name__
    if name in RIGHT and isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    return value


def _numbers(config: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, type) of each number that has one of these types; null passes where the key's type takes it."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key, value, hint = f"{prefix}{field.name}", getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{key}.")
            continue
        alternatives = (hint, *typing.get_args(hint))
        kind = next((each for each in alternatives if getattr(each, "__name__", None) in RIGHT), None)
        if kind is None or (value is None and type(None) in alternatives):
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            yield key, item, kind
