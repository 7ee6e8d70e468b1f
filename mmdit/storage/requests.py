"""Was this made by the same request? One comparison and one wording for all that is kept and gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmdit.errors import UserError

_SHOWN = 120  # characters of a value


class Request:
    """All that decides a result, as JSON values by name.

    Args:
        values: what JSON can hold; a tuple is a list there.
        ignored: names that are recorded and decide nothing, such as the device.
        optional: names that results of older versions do not have; there they are not compared.
    """

    def __init__(self, values: Mapping[str, Any], *, ignored: Iterable[str] = (), optional: Iterable[str] = ()) -> None:
        self.values: dict[str, Any] = json.loads(json.dumps(dict(values)))
        self.ignored, self.optional = frozenset(ignored), frozenset(optional)

    def check(self, previous: Any) -> list[str]:
        """Say what differs from the request that made a result: "seed was 0, now 1", …; empty = the same request.

        ``previous`` is the record. If it does not map names to values it records no request, and everything differs.
        """
        found = previous if isinstance(previous, Mapping) else {}
        return [
            f"{name} was {_shown(found.get(name))}, now {_shown(value)}"
            for name, value in self.values.items()
            if name not in self.ignored
            and (name in found or name not in self.optional)
            and not _same(found.get(name), value)
        ]

    def refuse_other(self, previous: Any, where: Path, what: str, remedy: str = "choose another --output") -> None:
        """Raise UserError where ``where`` holds ``what`` of another request."""
        if differences := self.check(previous):
            raise UserError(f"{where}: holds {what} of another request ({', '.join(differences)}): {remedy}")


def _same(first: Any, second: Any) -> bool:
    """Equal as JSON values: 1 is 1.0, and true is not 1."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(isinstance(first, bool) == isinstance(second, bool) and first == second)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
