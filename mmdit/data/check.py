"""Validation of a dataset on disk: every bad sample with the reason, nothing repaired and nothing skipped."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, nearest_names
from mmdit.modalities import MODALITIES, Codec, build_codec
from mmdit.modalities.sample import judge_sample
from mmdit.modalities.table import codec_class

REQUIRED_KEYS = ("modalities", "categories", "licence", "provenance")
BATCH = 256


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. where: file or manifest line, inside the dataset; sample: "split/id", or "" for none."""

    where: str
    reason: str
    sample: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" (sample {self.sample})" if self.sample else "")


@dataclass(frozen=True)
class CheckReport:
    """Result of `check_dataset`: samples read per split, and all problems in the order of the manifest."""

    num_samples: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def bad_samples(self) -> tuple[str, ...]:
        """ "split/id" of every sample with a problem, each once."""
        return tuple(dict.fromkeys(problem.sample for problem in self.problems if problem.sample))


@dataclass(frozen=True)
class _Description:
    """What of dataset.json the samples are compared with; None = not known, so not compared."""

    modalities: tuple[str, ...] | None
    categories: tuple[str, ...] | None
    codecs: Mapping[str, Codec]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Row:
    where: str
    sample: str
    files: dict[str, Any]


def check_dataset(path: Path, split: str | None = None) -> CheckReport:
    """Read every file of a dataset (all splits, or one) and list what is wrong with it.

    Found are: missing keys of dataset.json; malformed manifest lines, duplicate ids, unknown categories; missing,
    empty, truncated and mis-sized files (all files of a sample have one size); NaN and infinity; depth with no valid
    pixel; normals not of unit length beyond what 8 bits explain ((0, 0, 0) marks a pixel without one); unknown labels.

    Raises:
        UserError: path is no folder, or has no such split.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a dataset, the folder that holds dataset.json")
    splits = sorted(manifest.parent.name for manifest in path.glob("*/manifest.jsonl"))
    if split is not None and split not in splits:
        raise UserError(f"{path} has no split {split!r}: known are {', '.join(splits) or 'none'}")
    description, problems = _read_description(path)
    if not splits:
        problems.append(Problem("*/manifest.jsonl", "missing: the dataset has no split"))
    num_samples = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name in splits if split is None else [split]:
            num_samples[name] = 0
            rows = _read_manifest(path, name, description, problems)
            while batch := list(islice(rows, BATCH)):
                num_samples[name] += len(batch)
                for found in pool.map(lambda row, name=name: _check_sample(path / name, row, description), batch):
                    problems.extend(found)
            if num_samples[name] == 0:
                problems.append(Problem(f"{name}/manifest.jsonl", "lists no sample"))
    return CheckReport(num_samples, tuple(problems))


def _read_description(path: Path) -> tuple[_Description, list[Problem]]:
    unknown = _Description(None, None, _codecs({}, []), {"depth_scale": 1.0})
    try:
        values = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return unknown, [Problem("dataset.json", "missing")]
    except (OSError, ValueError) as error:
        return unknown, [Problem("dataset.json", f"not readable as JSON: {error}")]
    if not isinstance(values, dict):
        return unknown, [Problem("dataset.json", f"holds a {type(values).__name__}, not an object with keys")]
    reasons: list[str] = []
    modalities = _name_list(values, "modalities", reasons)
    known = [MODALITIES[name] for name in modalities or () if name in MODALITIES]
    required = dict.fromkeys([*REQUIRED_KEYS, *(key for each in known for key in codec_class(each).required_facts)])
    reasons += [f"key {key!r} is missing" for key in required if key not in values]
    for name in modalities or ():
        if name not in MODALITIES:
            reasons.append(f"unknown modality {name!r}: did you mean {nearest_names(name, MODALITIES, 1)[0]!r}?")
    categories = _name_list(values, "categories", reasons)
    before = len(reasons)
    codecs = _codecs(values, reasons)
    facts = {"depth_scale": 1.0, **values} if len(reasons) == before else {**values, "depth_scale": 1.0}
    description = _Description(modalities, categories, codecs, facts)
    return description, [Problem("dataset.json", reason) for reason in reasons]


def _name_list(values: dict[str, Any], key: str, reasons: list[str]) -> tuple[str, ...] | None:
    names = values.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        reasons.append(f"{key} is {names!r}: must be a list of names")
        return None
    reasons += [f"{key} names {name!r} twice" for name in sorted({name for name in names if names.count(name) > 1})]
    return tuple(names)


def _codecs(facts: Mapping[str, Any], reasons: list[str]) -> dict[str, Codec]:
    """The codecs of all modalities as this dataset has them; facts that are wrong are listed and not used."""
    codecs = {}
    for name, modality in MODALITIES.items():
        found = codec_class(modality).check_facts(facts)
        reasons += [reason for reason in found if reason not in reasons]
        settings = {} if found else codec_class(modality).dataset_settings(facts)
        codecs[name] = build_codec(modality.replace(**settings))
    return codecs


def _read_manifest(path: Path, split: str, description: _Description, problems: list[Problem]) -> Iterator[_Row]:
    """Rows worth opening the files of; what is wrong with the lines themselves is added to `problems`."""
    manifest = path / split / "manifest.jsonl"
    known = {*(MODALITIES if description.modalities is None else description.modalities)}
    first_line: dict[str, int] = {}
    with manifest.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{split}/manifest.jsonl:{number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                problems.append(Problem(where, f"not JSON: {error}"))
                continue
            if not isinstance(values, dict):
                problems.append(Problem(where, f"a {type(values).__name__}, not an object with keys"))
                continue
            name = str(values.get("id") or f"line {number}")
            if not values.get("id"):
                problems.append(Problem(where, f"id is {values.get('id')!r}: must be a text that is not empty"))
            elif name in first_line:
                problems.append(Problem(where, f"id {name!r} is also on line {first_line[name]}", f"{split}/{name}"))
            first_line.setdefault(name, number)
            sample = f"{split}/{name}"
            category = values.get("category")
            categories = description.categories
            if category is not None and categories is not None and category not in categories:
                nearest = ", ".join(nearest_names(str(category), categories)) or "none"
                problems.append(Problem(where, f"unknown category {category!r}: nearest are {nearest}", sample))
            # A modality that is null or has no key is absent from this sample, which is allowed.
            given = {key: value for key, value in values.items() if key in MODALITIES and value is not None}
            for key in given.keys() - known:
                problems.append(Problem(where, f"modality {key!r} is not among those of dataset.json", sample))
            for key in values.keys() - {"id", "category", *MODALITIES}:  # keys of the user's own are allowed
                if close := difflib.get_close_matches(key, known - given.keys(), n=1, cutoff=0.75):
                    problems.append(Problem(where, f"unknown key {key!r}: did you mean {close[0]!r}?", sample))
            if not given:
                problems.append(Problem(where, f"no modality: give the path of one of {sorted(known)} or more", sample))
            yield _Row(where, sample, given)


def _check_sample(folder: Path, row: _Row, description: _Description) -> list[Problem]:
    problems = []
    files = {}
    for modality, name in row.files.items():
        if not isinstance(name, str) or not name:
            problems.append(Problem(row.where, f"{modality} is {name!r}: must be a path in the split", row.sample))
        else:
            files[modality] = folder / name
    _, found = judge_sample(files, description.codecs, description.facts)
    for modality, reason in found:
        where = f"{folder.name}/{row.files[modality]}" if modality else row.where
        problems.append(Problem(where, reason, row.sample))
    return problems
