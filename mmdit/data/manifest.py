"""The files of a dataset: ``dataset.json`` says what it holds, ``<split>/manifest.jsonl`` lists its samples.

A modality whose key a line lacks (or that is null) is missing from that sample: it is ``None`` here, never guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.modalities import MODALITIES, Modality, get_modalities
from mmdit.modalities.depth import DEPTH_SPACES
from mmdit.modalities.table import codec_class

NO_CATEGORY = -1


@dataclass(frozen=True)
class DatasetInfo:
    """What ``dataset.json`` holds. ``depth_scale``: metres per unit of a 16-bit depth PNG; 0.001 where not given.

    ``values`` are all of its keys, for codecs that need others.
    """

    root: Path
    modalities: tuple[str, ...]
    categories: tuple[str, ...] = ()
    segmentation_classes: tuple[Mapping[str, Any], ...] | None = None
    depth_scale: float = 0.001
    licence: str = ""
    provenance: Any = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What codecs read of a dataset."""
        return {**self.values, "depth_scale": self.depth_scale, "segmentation_classes": self.segmentation_classes}


@dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    ``category``: index into the dataset's categories, -1 = none; ``files``: modality -> path, or None = missing.
    """

    id: str
    category: int
    files: Mapping[str, Path | None] = field(default_factory=dict)


def read_dataset_info(root: str | Path) -> DatasetInfo:
    """Read ``root/dataset.json``. Raises UserError naming the file and what is wrong in it."""
    path = Path(root) / "dataset.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a dataset folder needs a dataset.json (see 'mmdit data render')")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("modalities"), list) or not values["modalities"]:
        raise UserError(f"{path}: 'modalities' must be a list of at least one of {', '.join(MODALITIES)}")
    categories = values.get("categories") or []
    if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
        raise UserError(f"{path}: 'categories' is {categories!r}: give a list of names")
    if len(set(categories)) != len(categories):
        raise UserError(f"{path}: 'categories' names one category twice")
    scale = values.get("depth_scale", 0.001)
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0:
        raise UserError(f"{path}: 'depth_scale' is {scale!r}: give metres per unit, a positive number")
    try:
        get_modalities(values["modalities"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    classes = values.get("segmentation_classes") or []
    if not isinstance(classes, list) or not all(
        isinstance(entry, dict) and {"id", "name", "color"} <= entry.keys() for entry in classes
    ):
        raise UserError(f'{path}: \'segmentation_classes\' must be a list of {{"id", "name", "color"}}, one per label')
    return DatasetInfo(
        root=Path(root),
        modalities=tuple(values["modalities"]),
        categories=tuple(str(name) for name in categories),
        segmentation_classes=None if not classes else tuple(classes),
        depth_scale=float(scale),
        licence=str(values.get("licence") or ""),
        provenance=values.get("provenance"),
        values=values,
    )


def relative_depth_space(info: DatasetInfo) -> str | None:
    """Return the space that labels of relative depth are affine in, as `mmdit data label` notes it; None for metres."""
    facts = info.provenance
    for key in ("labels", "depth"):
        facts = facts.get(key) if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or facts.get("metric", True) or facts.get("space") not in DEPTH_SPACES:
        return None
    return str(facts["space"])


def modalities_from_dataset(
    info: DatasetInfo,
    names: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Modality]:
    """Return the records of a dataset's modalities, with its segmentation classes in the codec's settings.

    Args:
        info: the dataset.
        names: modalities to keep, in this order; None = all, in the dataset's order.
        settings: changes per modality name, e.g. ``{"depth": {"space": "depth", "quantiles": [0, 1]}}``.

    Raises:
        UserError: a name that the dataset does not have.
    """
    chosen = {}
    for name in info.modalities if names is None else names:
        if name not in info.modalities:
            raise unknown_name(f"modality of {info.root}", name, info.modalities)
        modality = MODALITIES[name]
        modality = modality.replace(**codec_class(modality).dataset_settings(info.facts))
        chosen[name] = modality.replace(**(settings or {}).get(name, {}))
    for name in settings or {}:
        if name not in chosen:
            raise unknown_name("modality in settings", name, chosen)
    return chosen


def list_splits(root: str | Path) -> list[str]:
    """Return the names of the folders that have a manifest, sorted."""
    return sorted(path.parent.name for path in Path(root).glob("*/manifest.jsonl"))


def read_manifest(info: DatasetInfo, split: str) -> list[Sample]:
    """Read ``<root>/<split>/manifest.jsonl``; paths in it are relative to the split's folder.

    Raises:
        UserError: no such split, or a line that is no JSON object, lacks an id, repeats one, or names an unknown
            category; the message names the file and the line.
    """
    folder = info.root / split
    path = folder / "manifest.jsonl"
    if not path.is_file():
        found = ", ".join(list_splits(info.root)) or "none"
        raise UserError(f"{path}: no such file; splits in {info.root}: {found}")
    index_of = {name: index for index, name in enumerate(info.categories)}
    samples: list[Sample] = []
    seen: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict) or row.get("id") in (None, ""):
            raise UserError(f"{path}, line {number}: every line is an object with an 'id'")
        sample_id = str(row["id"])
        if sample_id in seen:
            raise UserError(f"{path}, line {number}: id {sample_id!r} appears twice")
        seen.add(sample_id)
        category = row.get("category")
        if category is not None and category not in index_of:
            raise UserError(
                f"{path}, line {number}: {unknown_name('category', category, info.categories or ['(none)'])}"
            )
        files = {name: _file(folder, row.get(name), path, number) for name in info.modalities}
        samples.append(Sample(sample_id, NO_CATEGORY if category is None else index_of[category], files))
    if not samples:
        raise UserError(f"{path}: lists no sample")
    return samples


def _file(folder: Path, value: Any, manifest: Path, number: int) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UserError(f"{manifest}, line {number}: a path is a string, not {value!r}")
    return folder / value
