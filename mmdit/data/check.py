"""Validation of a dataset on disk: every bad sample with the reason, nothing repaired and nothing skipped."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError, nearest_names
from mmdit.modalities.modality import MODALITIES

REQUIRED_KEYS = ("modalities", "categories", "licence", "provenance")
REQUIRED_FOR = {"depth": "depth_scale", "segmentation": "segmentation_classes"}
# Rounded to 8 bits a component is off by up to 1/255, truncated by 2/255; the length by up to sqrt(3) of that.
UNIT_TOLERANCE = 0.015
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
    label_ids: np.ndarray | None


@dataclass(frozen=True)
class _Row:
    where: str
    sample: str
    files: dict[str, Any]


class _Unreadable(Exception):
    """A file that is missing, damaged or of the wrong kind; the message is the reason."""


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
    unknown = _Description(None, None, None)
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
    required = [*REQUIRED_KEYS, *(REQUIRED_FOR[name] for name in modalities or () if name in REQUIRED_FOR)]
    reasons += [f"key {key!r} is missing" for key in required if key not in values]
    for name in modalities or ():
        if name not in MODALITIES:
            reasons.append(f"unknown modality {name!r}: did you mean {nearest_names(name, MODALITIES, 1)[0]!r}?")
    categories = _name_list(values, "categories", reasons)
    depth_scale = values.get("depth_scale", 1.0)
    if isinstance(depth_scale, bool) or not isinstance(depth_scale, (int, float)) or not 0 < depth_scale < math.inf:
        reasons.append(f"depth_scale is {depth_scale!r}: must be a positive number, metres per unit")
    description = _Description(modalities, categories, _label_ids(values, reasons))
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


def _label_ids(values: dict[str, Any], reasons: list[str]) -> np.ndarray | None:
    classes = values.get("segmentation_classes")
    if not classes:
        return None
    ids = []
    try:
        for entry in classes:
            if not (isinstance(entry["name"], str) and isinstance(entry["id"], int) and 0 <= entry["id"] <= 65535):
                raise TypeError
            color = entry["color"]
            if len(color) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in color):
                raise TypeError
            ids.append(entry["id"])
    except (TypeError, KeyError):
        reasons.append('segmentation_classes: each must be {"id": 0..65535, "name": text, "color": [three of 0..255]}')
        return None
    reasons += [f"segmentation_classes has id {i} twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    return np.unique(ids)


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
    sizes: dict[str, tuple[int, int]] = {}
    for modality, name in row.files.items():
        where = f"{folder.name}/{name}"
        if not isinstance(name, str) or not name:
            problems.append(Problem(row.where, f"{modality} is {name!r}: must be a path in the split", row.sample))
            continue
        try:
            array = _read_array(folder / name, modality)
            sizes[modality] = array.shape[:2]
            reasons = _CHECKS[modality](array, description)
        except _Unreadable as error:
            reasons = [str(error)]
        problems += [Problem(where, reason, row.sample) for reason in reasons]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{modality} {width}x{height}" for modality, (height, width) in sizes.items())
        problems.append(Problem(row.where, f"the files differ in size: {listed}", row.sample))
    return problems


def _read_array(path: Path, modality: str) -> np.ndarray:
    """Pixels as (H, W) or (H, W, channels): of a palette image the indices, of .npy the array."""
    from PIL import Image

    if not path.is_file():
        raise _Unreadable("missing")
    if path.stat().st_size == 0:
        raise _Unreadable("empty file")
    try:
        if path.suffix == ".npy":
            if modality not in ("depth", "normal"):
                raise _Unreadable(f".npy is for depth and normals; {modality} must be an image")
            array = np.load(path, allow_pickle=False)
        else:
            # verify() reads the checksums to the end of the file, which decoding does not.
            with Image.open(path) as image:
                if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise _Unreadable(
                        f"{image.width}x{image.height} pixels: over the limit of {Image.MAX_IMAGE_PIXELS}"
                    )
                image.verify()
            with Image.open(path) as image:
                array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _Unreadable(f"damaged or not an image: {error}") from error
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise _Unreadable(f"has shape {array.shape}: must be (height, width) or (height, width, channels)")
    return array


def _non_finite(array: np.ndarray) -> list[str]:
    if not np.issubdtype(array.dtype, np.floating):
        return []
    count = int((~np.isfinite(array)).sum())
    return [f"{count} values are NaN or infinite"] if count else []


def _check_rgb(array: np.ndarray, description: _Description) -> list[str]:
    if array.dtype == np.uint8 and (array.ndim == 2 or array.shape[-1] in (3, 4)):
        return []
    return [f"holds {array.dtype} of shape {array.shape}: must be an 8-bit image"]


def _check_depth(array: np.ndarray, description: _Description) -> list[str]:
    if array.ndim != 2 or array.dtype == np.uint8 or array.dtype == bool:
        return [f"holds {array.dtype} of shape {array.shape}: must be one channel, 16-bit PNG or float .npy"]
    if reasons := _non_finite(array):
        return reasons
    if array.min() < 0:
        return [f"{int((array < 0).sum())} pixels are negative, down to {array.min()}: 0 marks an invalid pixel"]
    return [] if array.max() > 0 else ["no valid pixel: all are 0"]


def _check_normal(array: np.ndarray, description: _Description) -> list[str]:
    if array.ndim != 3 or array.shape[-1] != 3:
        return [f"has shape {array.shape}: must be (height, width, 3)"]
    if np.issubdtype(array.dtype, np.floating):
        if reasons := _non_finite(array):
            return reasons
        vectors = array.astype(np.float32)
    elif array.dtype == np.uint8:
        vectors = array.astype(np.float32) * (2 / 255) - 1
    else:
        return [f"holds {array.dtype}: must be an 8-bit PNG or float .npy"]
    lengths = np.linalg.norm(vectors, axis=-1)
    absent = lengths < UNIT_TOLERANCE
    wrong = (np.abs(lengths - 1) > UNIT_TOLERANCE) & ~absent
    if wrong.any():
        worst = lengths[wrong][np.abs(lengths[wrong] - 1).argmax()]
        return [f"{int(wrong.sum())} normals are not of unit length: one has {worst:.3f}"]
    return ["no valid pixel: all are (0, 0, 0)"] if absent.all() else []


def _check_segmentation(array: np.ndarray, description: _Description) -> list[str]:
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        return [f"holds {array.dtype} of shape {array.shape}: must be one channel of label ids"]
    if description.label_ids is None:
        return []
    unknown = np.setdiff1d(array, description.label_ids)
    if not unknown.size:
        return []
    listed = ", ".join(map(str, unknown[:8])) + (", ..." if unknown.size > 8 else "")
    return [f"unknown labels {listed} on {int(np.isin(array, unknown).sum())} pixels"]


_CHECKS: dict[str, Callable[[np.ndarray, _Description], list[str]]] = {
    "rgb": _check_rgb,
    "depth": _check_depth,
    "normal": _check_normal,
    "segmentation": _check_segmentation,
}
