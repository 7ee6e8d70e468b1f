"""What ``dataset.json`` says of imported folders: no more than is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdit.data.writer import read_description
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES
from mmdit.sources.folders.kinds import ImportedFiles
from mmdit.storage.names import text_of
from mmdit.storage.requests import Request

GENERATOR = "mmdit data import"
# Raised when the same files give other ones.
GENERATOR_VERSION = 1
_KEPT = ("segmentation_classes", "depth_scale", "licence")  # of other splits, in the order of the file


def describe(
    root: Path,
    split: str,
    folders: Mapping[str, Path],
    *,
    kinds: Mapping[str, ImportedFiles],
    licence: str | None = None,
) -> dict[str, Any]:
    """Return ``dataset.json`` for a split that is about to be added to a dataset, which may have others already.

    Args:
        root: the dataset.
        split: that is added, or gone on with.
        folders: modality -> where its files come from.
        kinds: modality -> what its files are.
        licence: of the images; None = that which is there, if any.

    Raises:
        UserError: what is there was not made by this command, with depth of another kind or other classes, or the split of
            other folders.
    """
    old = read_description(root) or {"provenance": {}}
    provenance = old["provenance"]
    settings = {"generator": GENERATOR, "generator_version": GENERATOR_VERSION}
    if provenance:
        Request(settings).refuse_other(provenance, root, "data")
    before: dict[str, dict[str, str]] = provenance.get("folders", {})
    _refuse_other_folders(root, split, before.get(split, {}), folders)
    splits = {**before, split: {name: text_of(str(folder)) for name, folder in folders.items()}}
    used = {name for names in splits.values() for name in names}
    values: dict[str, Any] = {"modalities": [name for name in MODALITIES if name in used]}
    kept: dict[str, Any] = {key: old[key] for key in _KEPT if key in old}
    labels = dict(provenance.get("labels", {}))
    for name, kind in kinds.items():
        kind.describe(kept, labels, root, had=any(name in names for names in before.values()))
    if licence is not None:
        kept["licence"] = licence
    values |= {key: kept[key] for key in _KEPT if key in kept}
    values["provenance"] = {**settings, "folders": splits, **({"labels": labels} if labels else {})}
    return values


def _refuse_other_folders(root: Path, split: str, before: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    for name, folder in before.items():
        if name not in folders:
            raise UserError(
                f"{root}: the split {split!r} has {name} of {folder!r}: give --{name} again, or another --split"
            )
        given = folders[name]
        if folder != text_of(str(given)) and Path(folder).resolve() != given.resolve():
            raise UserError(
                f"{root}: the split {split!r} holds {name} of {folder!r}, not {str(given)!r}, and the same name would be another "
                "image: give another --split or --output (or, if that folder has moved, its new place in dataset.json)"
            )
