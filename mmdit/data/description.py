"""The rules of ``dataset.json``, once: what is read from it and everything that is wrong with it.

Only ``modalities`` is needed. ``categories`` may be missing, null or empty: the dataset has none. ``segmentation_classes``
may be missing: labels are then 0 to 63, without names. ``depth_scale`` may be missing: 16-bit depth is in millimetres.
``licence`` and ``provenance`` are for people. A class of id 255 is one like any other; a label that no class has, 255
included, is an unknown one: to mark ignored pixels with 255, add ``{"id": 255, "name": "ignore", "color": ...}``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, nearest_names
from mmdit.modalities.table import MODALITIES, codec_class
from mmdit.names import DATASET
from mmdit.storage.json_object import flatten
from mmdit.storage.json_text import has_surrogate, quoted, read_json

_RENDERER = "mmdit data render"  # what the provenance of its datasets begins with
_GROWS = frozenset(
    {"labels", "prompts", "versions", "licence"}
)  # of a provenance: what changes as a dataset is worked on


def is_rendered(provenance: Any) -> bool:
    """Whether a dataset holds rendered scenes, by its provenance: no photograph is among them."""
    return isinstance(provenance, dict) and str(provenance.get("generator")).startswith(_RENDERER)


def identity(provenance: Any, name: Any) -> dict[str, Any]:
    """What a dataset is told from others by, by name: the same when it is moved, and when samples, splits or labels are added.

    Args:
        provenance: of its dataset.json.
        name: of its folder, which counts where the provenance says nothing; None = not known.
    """
    if not isinstance(provenance, Mapping):
        provenance = {} if provenance is None else {"description": provenance}
    facts = {key: value for key, value in flatten(provenance).items() if _GROWS.isdisjoint(key.split("."))}
    return {"generator": None, "description": None, **(facts or ({} if name is None else {"name": name}))}


def parse_description(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Read ``root/dataset.json``.

    Returns:
        What of it could be understood, by key, a key that could not be left out: "modalities" and "categories" are tuples of
        names, "facts" what the codecs read of it (``Codec.read_facts``). And the reasons why it can't be
        used, none if it can.
    """
    path = root / DATASET
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
    }
    known: dict[str, Any] = {key: value for key, value in understood.items() if value is not None}
    facts: dict[str, Any] = {}
    for codec in dict.fromkeys(codec_class(modality) for modality in MODALITIES.values()):
        found, wrong = codec.read_facts(values)
        facts |= {} if wrong else found
        reasons += wrong
    known["facts"] = facts
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


def _repeated(values: Iterable[Any]) -> list[Any]:
    """Those that appear again, each once, in their order; what can't be a key of a mapping never counts."""
    count: dict[Hashable, int] = {}
    for value in values:
        if isinstance(value, Hashable):
            count[value] = count.get(value, 0) + 1
    return [value for value, times in count.items() if times > 1]
