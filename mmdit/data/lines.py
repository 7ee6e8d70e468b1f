"""The only parser of ``<split>/manifest.jsonl``: its samples, and everything that is wrong with its lines.

One JSON object a line, in UTF-8, with or without a byte order mark; only a line feed ends a line (U+2028 and U+0085 may
stand in texts). ``id`` is a text or a number, which is taken as its text; no two are the same. ``category``: missing or null
= none. A modality that is missing or null is one the sample lacks. Its path is relative to the split's folder and stays in
the dataset's. Links on disk are followed wherever they lead: they are the owner's, as a path in a manifest need not be.
The user may add keys, except those that look like a misspelt modality.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.data.paths import PathRule, check_split_name
from mmdit.data.problems import Problem
from mmdit.errors import nearest_names
from mmdit.modalities import MODALITIES
from mmdit.storage.json_text import BOM, has_surrogate, parse_json, quoted
from mmdit.storage.names import path_of

MANIFEST = "manifest.jsonl"
MAX_LINE = 2**20
MAX_KEYS = 1000


def read_id(values: Mapping[str, Any]) -> str | None:
    """The id of a line of a dataset, a text or a number, as text; None = it has none that can be used."""
    given = values.get("id")
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    is_text = isinstance(given, str) and given != "" and not has_surrogate(given)
    return str(given) if is_number or is_text else None


@dataclass(frozen=True)
class Rules:
    """What a split's lines are compared with.

    Args:
        root, split: the dataset and the folder in it.
        modalities: of dataset.json; None = not known.
        categories: of dataset.json; None = not known, so not compared.
        allow_outside: accept files outside root.

    Raises:
        UserError: a split that is no folder's name.
    """

    root: Path
    split: str
    modalities: tuple[str, ...] | None
    categories: tuple[str, ...] | None
    allow_outside: bool = False

    def __post_init__(self) -> None:
        check_split_name(self.split)


@dataclass(frozen=True)
class Row:
    """One line. ``files``: modality -> path relative to the split's folder, those that the sample has."""

    line: int
    id: str
    category: str | None
    files: Mapping[str, str]


def parse_manifest(rules: Rules) -> Iterator[tuple[Row | None, list[Problem]]]:
    """Yield each line that is not blank: the sample, with what of it is right, and what is wrong with it.

    The sample is None where the line is not an object. One without an id is called "line 3".

    Raises:
        OSError: the file can't be read.
    """
    parser = _Parser(rules)
    with (rules.root / rules.split / MANIFEST).open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                yield None, [parser.problem(number, f"the line is longer than {MAX_LINE} bytes")]
                continue
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                yield parser.parse(number, line)


class _Parser:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.file = f"{rules.split}/{MANIFEST}"
        self.known = set(MODALITIES if rules.modalities is None else rules.modalities)
        self.listed = ", ".join(MODALITIES if rules.modalities is None else rules.modalities)
        self.categories = None if rules.categories is None else set(rules.categories)
        self.first_line: dict[str, int] = {}
        self.paths = PathRule(rules.root, rules.split, rules.allow_outside)
        self.nearest: dict[tuple[str, frozenset[str]], str | None] = {}

    def problem(self, line: int, reason: str, sample: str = "") -> Problem:
        return Problem(self.file, reason, sample and f"{self.rules.split}/{sample}", line)

    def parse(self, line: int, content: bytes) -> tuple[Row | None, list[Problem]]:
        try:
            values = parse_json(content)
        except ValueError as error:
            return None, [self.problem(line, str(error))]
        if not isinstance(values, dict):
            return None, [self.problem(line, f"holds {quoted(values)}: every line is an object with an 'id'")]
        reasons = []
        name = read_id(values)
        if name is None:
            reasons.append(
                f"'id' is {quoted(values.get('id'))}: every line is an object with an 'id', a text or a number"
            )
            name = f"line {line}"
        elif name in self.first_line:
            reasons.append(f"id {quoted(name)} appears twice, first on line {self.first_line[name]}")
        else:
            self.first_line[name] = line
        category = self._category(values, reasons)
        files = self._files(values, reasons)
        return Row(line, name, category, files), [self.problem(line, reason, name) for reason in reasons]

    def _category(self, values: Mapping[str, Any], reasons: list[str]) -> str | None:
        category = values.get("category")
        if category is None:
            return None
        if not isinstance(category, str):
            reasons.append(f"'category' is {quoted(category)}: must be the name of a category, or null")
            return None
        if self.categories is None or category in self.categories:
            return category
        nearest = nearest_names(category[:200], self.rules.categories or ())
        hint = (
            f"did you mean {nearest[0]!r}?"
            if nearest
            else "dataset.json names no categories: list it there, or leave it out of the line"
        )
        reasons.append(f"unknown category {quoted(category)}: {hint}")
        return None

    def _files(self, values: Mapping[str, Any], reasons: list[str]) -> dict[str, str]:
        given = {key: value for key, value in values.items() if key in MODALITIES and value is not None}
        files = {}
        for key, value in given.items():
            if key not in self.known:
                reasons.append(f"modality {key!r} is not among those of dataset.json ({self.listed})")
            elif why := self.paths.wrong(value):
                reasons.append(f"{key} is {quoted(value)}: {why}")
            else:
                files[key] = path_of(value)
        for key in values.keys() - {"id", "category", *MODALITIES}:
            if close := self._misspelt(key, given):
                reasons.append(f"unknown key {quoted(key)}: did you mean {close!r}?")
        if not given:
            reasons.append(f"no modality: give the path of at least one of {self.listed}")
        return files

    def _misspelt(self, key: str, given: Mapping[str, Any]) -> str | None:
        """The modality that a key of the user's looks like; asked once for each key, which every line may have."""
        question = key, frozenset(given)
        if question not in self.nearest:
            close = difflib.get_close_matches(key[:80], self.known - question[1], n=1, cutoff=0.75)
            if len(self.nearest) >= MAX_KEYS:
                self.nearest.clear()
            self.nearest[question] = close[0] if close else None
        return self.nearest[question]
