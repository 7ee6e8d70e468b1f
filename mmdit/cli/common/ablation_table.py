"""Tables of variants: YAML files that say what is trained and compared (``configs/ablations``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.storage.json_text import quoted
from mmdit.storage.names import safe_name
from mmdit.storage.yaml_text import read_yaml

TABLE_KEYS = ("base", "samples", "points", "options", "variants")
VARIANT_KEYS = ("title", "share", "after", "options", "measures")
# What the command says of each run.
OWN_OPTIONS = ("output", "resume", "config", "seed", "data.path", "trainer.max_steps")
MAX_SAMPLES, MAX_POINTS = 10**12, 1000


@dataclass(frozen=True)
class Variant:
    """One line of the comparison.

    Args:
        name: of its runs' folders and rows.
        title: what people read.
        share: of the samples of a run that it is trained on.
        options: dotted options of ``mmdit train`` -> value, over the base's.
        after: the variant whose trained model this one begins with, its samples and times counted; None = what the options say.
        measures: beginnings of the names of the measures that count; none = all.
    """

    name: str
    title: str
    share: float
    options: Mapping[str, Any]
    measures: tuple[str, ...] = ()
    after: str | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks that the measures are of, prompts among them."""
        from mmdit.metrics.learning_curves import curve_columns
        from mmdit.metrics.tasks import PROMPTS, TASKS

        counted = [column for column in curve_columns() if self.counts(column)]
        return [
            task for task in (*TASKS, PROMPTS) if any(column.startswith((f"{task}_", f"{task}.")) for column in counted)
        ]

    def counts(self, column: str) -> bool:
        """Whether a measure says something about this variant."""
        return not self.measures or column.startswith(self.measures)


@dataclass(frozen=True)
class AblationTable:
    """A table as its file says it.

    Args:
        path: of the file.
        base: the training configuration that all variants start from.
        samples: that a run sees.
        points: of a learning curve, evenly spaced; the last is the end.
        variants: by name, in order; the first is what the others are compared with.
    """

    path: Path
    base: Path
    samples: int
    points: int
    variants: Mapping[str, Variant]

    def earlier(self, names: Sequence[str]) -> list[str]:
        """The variants, not among ``names``, whose models these begin with."""
        found: list[str] = []
        for name in reversed(list(self.variants)):
            after = self.variants[name].after
            if (name in names or name in found) and after is not None and after not in (*names, *found):
                found.append(after)
        return found

    def arguments(self, variant: Variant, output: Path, data: Path, seed: int) -> list[str]:
        """The options of ``mmdit train`` that a run of a variant has, but for its length."""
        given = {**variant.options, "seed": seed, "output": str(output), "data.path": str(data)}
        return ["--config", str(self.base), *(f"--{name}={_word(value)}" for name, value in given.items())]


def read_table(path: Path) -> AblationTable:
    """Read a table. Raises UserError naming the file and what is wrong in it; options are checked where they are parsed."""
    table = _section(read_yaml(path), f"{path}", TABLE_KEYS)
    base = table.get("base")
    if not isinstance(base, str) or not (path.parent / base).is_file():
        raise UserError(f"{path}: base is {quoted(base)}: give a training configuration, relative to this file")
    samples = _whole(table.get("samples"), f"{path}: samples", MAX_SAMPLES)
    points = _whole(table.get("points", 5), f"{path}: points", MAX_POINTS)
    common = _options(table.get("options"), f"{path}: options")
    found = table.get("variants")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: has no variants: give at least one, a name with its title and options")
    variants = {str(name): _variant(str(name), value, common, path) for name, value in found.items()}
    for number, (name, variant) in enumerate(variants.items()):
        if variant.after is not None and variant.after not in (before := list(variants)[:number]):
            raise UserError(
                f"{path}: variant {name!r}: after is {quoted(variant.after)}: give a variant above it, of {before}"
            )
    titles = [variant.title for variant in variants.values()]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise UserError(f"{path}: two variants have the title {twice[0]!r}: give each its own")
    return AblationTable(path, path.parent / base, samples, points, variants)


def _variant(name: str, value: Any, common: Mapping[str, Any], path: Path) -> Variant:
    from mmdit.metrics.learning_curves import curve_columns

    where = f"{path}: variant {name!r}"
    if safe_name(name) != name:
        raise UserError(f"{where}: its name is that of a folder: give letters, digits, '-' and '_'")
    entry = _section(value, where, VARIANT_KEYS)
    title = entry.get("title", name)
    if not isinstance(title, str) or not title.strip() or "|" in title or "\n" in title:
        raise UserError(f"{where}: title is {quoted(title)}: give one line of text without '|'")
    share = entry.get("share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"{where}: share is {quoted(share)}: give a number above 0, at most 1")
    measures = entry.get("measures", [])
    if not isinstance(measures, list) or not all(isinstance(each, str) for each in measures):
        raise UserError(f"{where}: measures is {quoted(measures)}: give a list of names")
    for each in measures:
        if not any(column.startswith(each) for column in curve_columns()):
            raise UserError(f"{where}: {unknown_name('measure', each, curve_columns())}")
    after = entry.get("after")
    if after is not None and not isinstance(after, str):
        raise UserError(f"{where}: after is {quoted(after)}: give a variant's name")
    options = {**common, **_options(entry.get("options"), f"{where}: options")}
    return Variant(name, title, float(share), options, tuple(measures), after)


def _section(value: Any, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: is {quoted(value)}: give keys with values, of {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise UserError(f"{where}: {unknown_name('key', key, keys)}")
    return value


def _options(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: is {quoted(value)}: give options of 'mmdit train', such as optimizer.name: adamw")
    for key in value:
        if key in OWN_OPTIONS:
            raise UserError(f"{where}: {key} is said by 'mmdit ablate' itself: leave it out")
    return {str(key): each for key, each in value.items()}


def _whole(value: Any, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UserError(f"{where} is {quoted(value)}: give a whole number from 1 to {most}")
    return value


def _word(value: Any) -> str:
    """A value of YAML as the command line takes it: text as it is, all else as JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value)
