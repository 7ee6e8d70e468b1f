"""Validation of a dataset on disk: every bad sample with the reason, nothing repaired and nothing skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mmdit.data.description import parse_description
from mmdit.data.lines import MANIFEST, Row, Rules, parse_manifest
from mmdit.data.manifest import list_splits
from mmdit.data.problems import Problem
from mmdit.data.prompted import judge_entities
from mmdit.data.prompts import NO_PROMPT, PROMPTS, CaptionedSample, parse_prompts
from mmdit.errors import UserError
from mmdit.modalities import IMAGE, Codec, build_codecs
from mmdit.modalities.depth import DEPTH_SCALE
from mmdit.modalities.sample import judge_sample
from mmdit.modalities.table import MODALITIES, codec_class
from mmdit.names import DATASET

T = TypeVar("T")

# So that files are judged as a dataset's even where dataset.json can't be read.
MISSING_FACTS: Mapping[str, Any] = {"depth_scale": DEPTH_SCALE}
BATCH = 256


@dataclass(frozen=True)
class CheckReport:
    """Result of `check_dataset`: samples read per split, and all problems in the order of the manifest."""

    num_samples: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def bad_samples(self) -> tuple[str, ...]:
        """ "split/id" of every sample with a problem, each once."""
        return tuple(dict.fromkeys(problem.sample for problem in self.problems if problem.sample))


def check_dataset(path: Path, split: str | None = None, *, allow_outside: bool = False) -> CheckReport:
    """Read every file of a dataset (all splits, or one) and list what is wrong with it.

    Found are: what the loader refuses in dataset.json and in the manifests (``mmdit.data.description`` and
    ``mmdit.data.lines`` have the rules of both); missing, empty, truncated and mis-sized files (all files of a sample have
    one size); NaN and infinity; depth with no valid pixel; normals not of unit length beyond what 8 bits explain ((0, 0, 0)
    marks a pixel without one); unknown labels; in prompts.jsonl pictures and masks that can't be read, masks of another size than
    the sample's picture, and boxes outside of it.

    Args:
        path: the dataset folder.
        split: only this one.
        allow_outside: accept files outside the folder.

    Raises:
        UserError: path is not a folder, or lacks the split.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a dataset, the folder that holds dataset.json")
    splits = list_splits(path)
    if split is not None and split not in splits:
        raise UserError(f"{path} has no split {split!r}: known are {', '.join(splits) or 'none'}")
    values, reasons = parse_description(path)
    problems = [Problem(DATASET, reason) for reason in reasons]
    facts = {**MISSING_FACTS, **values.get("facts", {})}
    settings = {name: codec_class(modality).dataset_settings(facts) for name, modality in MODALITIES.items()}
    codecs = build_codecs({name: modality.replace(**settings[name]) for name, modality in MODALITIES.items()})
    if not splits:
        problems.append(Problem(f"*/{MANIFEST}", "missing: the dataset has no split"))
    num_samples = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name in splits if split is None else [split]:
            rules = Rules(path, name, values.get("modalities"), values.get("categories"), allow_outside)
            num_samples[name] = 0
            pictures: dict[str, Path | None] = {}  # of the samples, by id
            for rows in _batches(_rows(rules)):
                num_samples[name] += sum(row is not None for row, _ in rows)
                for row in (row for row, _ in rows if row is not None):
                    pictures[row.id] = path / name / row.files[IMAGE] if IMAGE in row.files else None
                work = partial(_check_sample, path / name, codecs=codecs, facts=facts)
                found = pool.map(work, [row for row, _ in rows])
                for (_, in_line), in_files in zip(rows, found, strict=True):
                    problems += [*in_line, *in_files]
            if num_samples[name] == 0:
                problems.append(Problem(f"{name}/{MANIFEST}", "lists no sample"))
            problems += _prompts(rules, pictures, pool)
    return CheckReport(num_samples, tuple(problems))


def _rows(rules: Rules) -> Iterator[tuple[Row | None, list[Problem]]]:
    try:
        yield from parse_manifest(rules)
    except OSError as error:
        yield None, [Problem(f"{rules.split}/{MANIFEST}", f"can't be read: {error.strerror or error}")]


def _prompts(rules: Rules, pictures: Mapping[str, Path | None], pool: ThreadPoolExecutor) -> list[Problem]:
    """What is wrong with the split's captions, if it has any, and with what they name."""
    file = f"{rules.split}/{PROMPTS}"
    if not (rules.root / file).exists():
        return []
    problems: list[Problem] = []
    is_empty = True

    def judge(sample: CaptionedSample | None) -> list[str]:
        return [] if sample is None else judge_entities(sample, pictures[sample.id])

    try:
        for lines in _batches(parse_prompts(rules, pictures)):
            is_empty = False
            for (sample, in_line), in_files in zip(
                lines, pool.map(judge, [sample for sample, _ in lines]), strict=True
            ):
                problems += in_line
                problems += [
                    Problem(file, reason, f"{rules.split}/{sample.id}") for reason in in_files if sample is not None
                ]
    except OSError as error:
        problems.append(Problem(file, f"can't be read: {error.strerror or error}"))
    else:
        problems += [Problem(file, NO_PROMPT)] if is_empty else []
    return problems


def _batches(rows: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _check_sample(
    folder: Path, row: Row | None, *, codecs: Mapping[str, Codec], facts: Mapping[str, Any]
) -> list[Problem]:
    if row is None:
        return []
    sample = f"{folder.name}/{row.id}"
    _, found = judge_sample({modality: folder / name for modality, name in row.files.items()}, codecs, facts)
    return [
        Problem(f"{folder.name}/{row.files[modality]}", reason, sample)
        if modality
        else Problem(f"{folder.name}/{MANIFEST}", reason, sample, row.line)
        for modality, reason in found
    ]
