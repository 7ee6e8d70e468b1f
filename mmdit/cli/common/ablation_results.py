"""The results of an ablation on disk: one CSV, written whole after each point, and the settings that made it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdit.errors import UserError
from mmdit.storage.files import write_atomically
from mmdit.storage.json_object import read_object, write_json
from mmdit.storage.requests import Request

TABLE, SETTINGS = "ablation.csv", "ablation.json"
TEXTS, COUNTS, TIMES = (
    ("variant", "title"),
    ("seed", "step", "max_steps", "samples"),
    ("processor_seconds", "wall_seconds"),
)
FIRST = ("variant", "title", *COUNTS, *TIMES)


class AblationResults:
    """The rows on disk: read back where the settings are the same.

    Args:
        folder: of the results.
        settings: what all rows share, such as the scenes they are measured on.
        variants: of those that are trained now, name -> the options of its training by dotted name.
        order: names of variants in the order of the rows; others that are on disk stay, and come after them.
        columns: of the measures.

    Raises:
        UserError: a folder with the results of other settings or of another variant of that name, or one that can't be read or
            written.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        variants: Mapping[str, Mapping[str, Any]],
        order: Iterable[str],
        columns: Sequence[str],
        versions: Mapping[str, str],
    ) -> None:
        self.folder, self.columns = folder, list(columns)
        self.rows: list[dict[str, Any]] = []
        known: dict[str, Any] = {}
        if (folder / SETTINGS).is_file():
            found = read_object(folder / SETTINGS)
            Request(settings).refuse_other(found.object("settings"), folder, "the results")
            known = {name: found.object("variants").object(name) for name in found.object("variants")}
            for name, options in variants.items():
                _refuse_other(name, options, known.get(name), folder)
        if (folder / TABLE).is_file():
            if not (folder / SETTINGS).is_file():
                raise UserError(
                    f"{folder}: holds {TABLE} without {SETTINGS}, which says what made it: choose another --output"
                )
            self.rows = read_rows(folder / TABLE)
        self.order = list(dict.fromkeys([*order, *known]))
        recorded = {**variants, **known}
        values = {name: dict(recorded[name]) for name in self.order if name in recorded}
        write_json(folder / SETTINGS, {"settings": dict(settings), "variants": values, "versions": dict(versions)})

    def has(self, variant: str, seed: int, step: int) -> bool:
        """Whether a point is there."""
        return any((row["variant"], row["seed"], row["step"]) == (variant, seed, step) for row in self.rows)

    def last(self, variant: str, seed: int) -> Mapping[str, Any] | None:
        """The last point of a run that is finished, else None."""
        found = [row for row in self.rows if (row["variant"], row["seed"]) == (variant, seed)]
        return next((row for row in found if row["step"] == row["max_steps"]), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Insert a point and write the table."""
        self.rows.append(dict(row))
        self.rows.sort(key=lambda each: (self.order.index(each["variant"]), each["seed"], each["step"]))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*FIRST, *self.columns], restval="", lineterminator="\n")
        writer.writeheader()
        for each in self.rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in each.items()})
        write_atomically(self.folder / TABLE, buffer.getvalue().encode())


def _refuse_other(name: str, options: Mapping[str, Any], known: Mapping[str, Any] | None, folder: Path) -> None:
    """Raise UserError where ``name`` was trained with other options; those at their defaults are in neither record."""
    if known is not None:
        keys = dict.fromkeys([*options, *known])
        now = {key: options.get(key) for key in keys}
        Request(now).refuse_other(
            known, folder, f"variant {name!r}", "give it another name, or choose another --output"
        )


def _check_row(row: Mapping[str, Any], before: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for counts or times that no run has, and for a point that stands twice."""
    point = "{variant!r}, seed {seed}, step {step}".format_map(row)
    for name in ("step", "max_steps", "samples"):
        if row[name] < 1:
            raise ValueError(f"{point}: {name} is {row[name]}")
    for name in TIMES:
        if not 0 <= row[name] < math.inf:
            raise ValueError(f"{point}: {name} is {row[name]:g}")
    if any(all(row[name] == other[name] for name in ("variant", "seed", "step")) for other in before):
        raise ValueError(f"{point} stands twice")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read ``ablation.csv``: text, whole numbers, measures (NaN where not measurable); empty cells are left out.

    Raises:
        UserError: a file that is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        if not lines:
            raise ValueError("it has no rows")
        rows: list[dict[str, Any]] = []
        for line in lines:
            row: dict[str, Any] = {name: line[name] for name in TEXTS}
            row |= {name: int(line[name]) for name in COUNTS} | {name: float(line[name]) for name in TIMES}
            row |= {name: float(value) for name, value in line.items() if name not in FIRST and value}
            _check_row(row, rows)
            rows.append(row)
        return rows
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of 'mmdit ablate' ({error})") from error
