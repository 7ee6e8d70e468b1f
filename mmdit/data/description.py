"""The rules of ``dataset.json``, once: what is read from it and everything that is wrong with it.

Only ``modalities`` is needed. ``categories`` may be missing, null or empty: the dataset has none. ``segmentation_classes``
may be missing: labels are then 0 to 63, without names. ``depth_scale`` may be missing: 16-bit depth is in millimetres.
``licence`` and ``provenance`` are for people. A class of id 255 is one like any other; a label that no class has, 255
included, is an unknown one: who marks ignored pixels with 255 adds ``{"id": 255, "name": "ignore", "color": ...}``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, nearest_names
from mmdit.modalities.modality import MODALITIES
from mmdit.storage.json_text import has_surrogate, quoted, read_json

FILE = "dataset.json"
DEPTH_SCALE = 0.001
MAX_LABEL = 65535
_CLASS_FORM = '{"id": 0..65535, "name": text, "color": [three of 0..255]}'


def parse_description(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Read ``root/dataset.json``.

    Returns:
        What of it could be understood, by key, a key that could not be left out: "modalities" and "categories" are tuples of
        names, "segmentation_classes" a tuple of mappings or None, "depth_scale" a float. And the reasons why it can't be
        used, none if it can.
    """
    path = root / FILE
    try:
        values = read_json(path, advice="a dataset folder needs a dataset.json (see 'mmdit data render')")
    except UserError as error:
        return {}, [str(error).removeprefix(f"{path}: ")]
    if not isinstance(values, dict):
        return {}, [f"holds {quoted(values)}: must be an object with keys"]
    reasons: list[str] = []
    understood = {
        "modalities": _modalities(values, reasons),
        "categories": _categories(values, reasons),
        "depth_scale": _depth_scale(values, reasons),
    }
    known = {key: value for key, value in understood.items() if value is not None}
    if _classes_are_right(values, reasons):
        known["segmentation_classes"] = tuple(values.get("segmentation_classes") or ()) or None
    licence = values.get("licence")
    if licence is not None and not isinstance(licence, str):
        reasons.append(f"'licence' is {quoted(licence)}: must be a text")
    known["licence"] = licence if isinstance(licence, str) else ""
    known["provenance"] = values.get("provenance")
    return known, reasons


def _modalities(values: dict[str, Any], reasons: list[str]) -> tuple[str, ...] | None:
    names = values.get("modalities")
    if not isinstance(names, list) or not names:
        given = "is missing" if "modalities" not in values else f"is {quoted(names)}"
        reasons.append(f"'modalities' {given}: must be a list of at least one of {', '.join(MODALITIES)}")
        return None
    before = len(reasons)
    for name in names:
        if not isinstance(name, str) or name not in MODALITIES:
            nearest = nearest_names(str(name)[:80], MODALITIES, 1)[0]
            known = ", ".join(MODALITIES)
            reasons.append(f"unknown modality {quoted(name)}: did you mean {nearest!r}? Known: {known}")
    reasons += [f"'modalities' names {name!r} twice" for name in _repeated(names)]
    return tuple(names) if len(reasons) == before else None


def _categories(values: dict[str, Any], reasons: list[str]) -> tuple[str, ...] | None:
    names = values.get("categories")
    if names is None:
        return ()
    if not isinstance(names, list):
        reasons.append(f"'categories' is {quoted(names)}: give a list of names")
        return None
    for name in names:
        if not isinstance(name, str) or not name or has_surrogate(name):
            reasons.append(f"'categories' has the entry {quoted(name)}: give a list of names, each a text")
            return None
    twice = _repeated(names)
    reasons += [f"'categories' names {quoted(name)} twice" for name in twice]
    return None if twice else tuple(names)


def _depth_scale(values: dict[str, Any], reasons: list[str]) -> float | None:
    scale = values.get("depth_scale")
    if scale is None:
        return DEPTH_SCALE
    try:
        if not isinstance(scale, bool) and isinstance(scale, (int, float)) and 0 < float(scale) < math.inf:
            return float(scale)
    except OverflowError:
        pass
    reasons.append(f"'depth_scale' is {quoted(scale)}: give metres per unit, a positive number")
    return None


def _classes_are_right(values: dict[str, Any], reasons: list[str]) -> bool:
    classes = values.get("segmentation_classes")
    if classes is None:
        return True
    if not isinstance(classes, list):
        reasons.append(f"'segmentation_classes' must be a list of {_CLASS_FORM}, one per label, not {quoted(classes)}")
        return False
    for entry in classes:
        if not _is_class(entry):
            reasons.append(f"'segmentation_classes' must be a list of {_CLASS_FORM}; one is {quoted(entry)}")
            return False
    ids = _repeated(entry["id"] for entry in classes)
    colors = _repeated(tuple(entry["color"]) for entry in classes)
    reasons += [f"'segmentation_classes' has id {number} twice" for number in ids]
    for color in colors:
        sharing = ", ".join(str(entry["id"]) for entry in classes if tuple(entry["color"]) == color)
        reasons.append(f"'segmentation_classes' gives the color {list(color)} to the ids {sharing}: each needs its own")
    return not ids and not colors


def _is_class(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or has_surrogate(entry["name"]):
        return False
    color = entry.get("color")
    return (
        _is_whole(entry.get("id"), MAX_LABEL)
        and isinstance(color, list)
        and len(color) == 3
        and all(_is_whole(value, 255) for value in color)
    )


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _repeated(values: Iterable[Any]) -> list[Any]:
    """Those that appear again, each once, in their order; what can't be a key of a mapping never counts."""
    count: dict[Hashable, int] = {}
    for value in values:
        if isinstance(value, Hashable):
            count[value] = count.get(value, 0) + 1
    return [value for value, times in count.items() if times > 1]
