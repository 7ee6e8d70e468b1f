"""Validation of a dataset on disk: every bad sample with the reason, nothing repaired and nothing skipped."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmdit.data.description import FILE, parse_description
from mmdit.data.lines import MANIFEST, Row, Rules, parse_manifest
from mmdit.data.manifest import list_splits
from mmdit.data.problems import Problem
from mmdit.errors import UserError

T = TypeVar("T")

# Rounded to 8 bits a component is off by up to 1/255, truncated by 2/255; the length by up to sqrt(3) of that.
UNIT_TOLERANCE = 0.015
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


@dataclass(frozen=True)
class _Description:
    """What of dataset.json the files are compared with; None = not known, so not compared."""

    label_ids: np.ndarray | None


class _Unreadable(Exception):
    """A file that is missing, damaged or of the wrong kind; the message is the reason."""


def check_dataset(path: Path, split: str | None = None, *, allow_outside: bool = False) -> CheckReport:
    """Read every file of a dataset (all splits, or one) and list what is wrong with it.

    Found are: what the loader refuses in dataset.json and in the manifests (``mmdit.data.description`` and
    ``mmdit.data.lines`` have the rules of both); missing, empty, truncated and mis-sized files (all files of a sample have
    one size); NaN and infinity; depth with no valid pixel; normals not of unit length beyond what 8 bits explain ((0, 0, 0)
    marks a pixel without one); unknown labels.

    Args:
        path: the dataset folder.
        split: only this one.
        allow_outside: accept files outside the folder.

    Raises:
        UserError: path is no folder, or has no such split.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a dataset, the folder that holds dataset.json")
    splits = list_splits(path)
    if split is not None and split not in splits:
        raise UserError(f"{path} has no split {split!r}: known are {', '.join(splits) or 'none'}")
    values, reasons = parse_description(path)
    problems = [Problem(FILE, reason) for reason in reasons]
    classes = values.get("segmentation_classes")
    description = _Description(None if classes is None else np.unique([entry["id"] for entry in classes]))
    if not splits:
        problems.append(Problem(f"*/{MANIFEST}", "missing: the dataset has no split"))
    num_samples = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name in splits if split is None else [split]:
            rules = Rules(path, name, values.get("modalities"), values.get("categories"), allow_outside)
            num_samples[name] = 0
            for rows in _batches(_rows(rules)):
                num_samples[name] += sum(row is not None for row, _ in rows)
                work = partial(_check_sample, path / name, description=description)
                found = pool.map(work, [row for row, _ in rows])
                for (_, in_line), in_files in zip(rows, found, strict=True):
                    problems += [*in_line, *in_files]
            if num_samples[name] == 0:
                problems.append(Problem(f"{name}/{MANIFEST}", "lists no sample"))
    return CheckReport(num_samples, tuple(problems))


def _rows(rules: Rules) -> Iterator[tuple[Row | None, list[Problem]]]:
    try:
        yield from parse_manifest(rules)
    except OSError as error:
        yield None, [Problem(f"{rules.split}/{MANIFEST}", f"can't be read: {error.strerror or error}")]


def _batches(rows: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _check_sample(folder: Path, row: Row | None, *, description: _Description) -> list[Problem]:
    if row is None:
        return []
    problems = []
    sample = f"{folder.name}/{row.id}"
    sizes: dict[str, tuple[int, int]] = {}
    for modality, name in row.files.items():
        try:
            array = _read_array(folder / name, modality)
            sizes[modality] = array.shape[:2]
            reasons = _CHECKS[modality](array, description)
        except _Unreadable as error:
            reasons = [str(error)]
        except Exception as error:  # whatever a file holds, the others are looked at
            reasons = [f"can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
        problems += [Problem(f"{folder.name}/{name}", reason, sample) for reason in reasons]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{modality} {width}x{height}" for modality, (height, width) in sizes.items())
        problems.append(Problem(f"{folder.name}/{MANIFEST}", f"the files differ in size: {listed}", sample, row.line))
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
