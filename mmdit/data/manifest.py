"""The files of a dataset: ``dataset.json`` says what it holds, ``<split>/manifest.jsonl`` lists its samples.

A modality whose key a line lacks (or that is null) is missing from that sample: it is ``None`` here, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdit.data.description import parse_description
from mmdit.data.lines import MANIFEST, Rules, parse_manifest
from mmdit.data.problems import Problem
from mmdit.errors import UserError, check_choice, unknown_name
from mmdit.modalities.depth import DEPTH_SCALE
from mmdit.modalities.modality import Modality
from mmdit.modalities.table import MODALITIES, codec_class
from mmdit.names import DATASET, DEPTH_SPACES
from mmdit.storage.listing import list_folders

NO_CATEGORY = -1


@dataclass(frozen=True)
class DatasetInfo:
    """What ``dataset.json`` holds.

    ``facts``: what codecs read of it, see ``Codec.read_facts``; ``allow_outside``: whether manifests may
    name files outside ``root``, which is the reader's word and not the file's.
    """

    root: Path
    modalities: tuple[str, ...]
    categories: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    provenance: Any = None
    allow_outside: bool = False

    @property
    def depth_scale(self) -> float:
        """Metres per unit of a 16-bit depth PNG; 0.001 where not given."""
        return float(self.facts.get("depth_scale", DEPTH_SCALE))

    @property
    def segmentation_classes(self) -> tuple[Mapping[str, Any], ...] | None:
        """The classes, {"id", "name", "color"} each; None where not given."""
        return self.facts.get("segmentation_classes")

    @cached_property
    def category_index(self) -> Mapping[str, int]:
        """Number of each category."""
        return {name: index for index, name in enumerate(self.categories)}


@dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    ``category``: index into the dataset's categories, -1 = none; ``files``: modality -> path, or None = missing.
    """

    id: str
    category: int
    files: Mapping[str, Path | None] = field(default_factory=dict)


def read_dataset_info(root: str | Path, *, allow_outside: bool = False) -> DatasetInfo:
    """Read ``root/dataset.json``.

    Args:
        root: the dataset folder.
        allow_outside: let its manifests name files outside the folder.

    Raises:
        UserError: the first of what is wrong with it (``mmdit.data.description`` has the rules).
    """
    values, reasons = parse_description(Path(root))
    if reasons:
        raise Problem(DATASET, reasons[0]).error(Path(root))
    return DatasetInfo(root=Path(root), allow_outside=allow_outside, **values)


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
        UserError: a name that the dataset does not have, one that is named twice, or none at all.
    """
    if names is not None:
        names = list(names)
        check_choice("modalities", names)
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
    """Return the names of the folders that have a manifest, sorted, without hidden ones."""
    if not Path(root).is_dir():
        return []
    return [name for name in list_folders(root) if (Path(root) / name / MANIFEST).is_file()]


def read_manifest(info: DatasetInfo, split: str) -> list[Sample]:
    """Read ``<root>/<split>/manifest.jsonl``; paths in it are relative to the split's folder.

    Raises:
        UserError: no such split, or the first of what is wrong with its lines (``mmdit.data.lines`` has the rules).
    """
    rules = Rules(info.root, split, info.modalities, info.categories, info.allow_outside)
    folder = info.root / split
    path = folder / MANIFEST
    if not path.is_file():
        found = ", ".join(list_splits(info.root)) or "none"
        raise UserError(f"{path}: no such file; splits in {info.root}: {found}")
    samples: list[Sample] = []
    for row, problems in parse_manifest(rules):
        if problems:
            raise problems[0].error(info.root)
        assert row is not None
        category = NO_CATEGORY if row.category is None else info.category_index[row.category]
        files = {name: None if name not in row.files else folder / row.files[name] for name in info.modalities}
        samples.append(Sample(row.id, category, files))
    if not samples:
        raise UserError(f"{path}: lists no sample")
    return samples
