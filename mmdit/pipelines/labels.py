"""Class labels as users write them -> class ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.layouts import shown
from mmdit.modalities.stored import to_numpy

ClassLabel = int | str | None
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def label_ids(id2label: Mapping[int, str]) -> dict[str, int]:
    """Name -> id. A name may list synonyms, "tench, Tinca tinca" (ImageNet); of equal ones the first id wins."""
    ids: dict[str, int] = {}
    for index, names in id2label.items():
        for name in (names, *names.split(",")):
            ids.setdefault(name.strip(), index)
    return ids


def check_ids(ids: Iterable[int], num_classes: int) -> None:
    """Raise UserError for a named id that is not a class of the model; one without classes may have names, which it refuses."""
    for index in ids:
        if num_classes and not 0 <= index < num_classes:
            raise UserError(
                f"id2label holds {index}, the transformer has {num_classes} classes: give 0 to {num_classes - 1}"
            )


def resolve_labels(
    labels: ClassLabel | Sequence[ClassLabel] | Tensor | np.ndarray, num_classes: int, id2label: Mapping[int, str]
) -> list[int | None]:
    """Ids, names or a list of either -> list of ids; None = no label.

    Raises:
        UserError: a name the model doesn't know (with the nearest ones), or an id that is not 0 to num_classes - 1.
    """
    if isinstance(labels, Tensor | np.ndarray):
        labels = to_numpy(labels, "class_labels").tolist()
    if not isinstance(labels, list | tuple):
        labels = [labels]  # type: ignore[list-item]
    if not labels:
        raise UserError("class_labels is an empty list: give at least one id or name, or None")
    names = label_ids(id2label)
    return [_resolve(label, num_classes, names) for label in labels]


def _resolve(label: Any, num_classes: int, names: Mapping[str, int]) -> int | None:
    if label is None:
        return None
    if num_classes == 0:
        raise UserError(f"class label {label!r}: this model has no classes; leave labels out")
    if isinstance(label, str):
        if label in names:
            return names[label]
        if not names:
            _refuse_path(label)
            raise UserError(
                f"class label {label!r} is a name, and this model has no names: give 0 to {num_classes - 1}"
            )
        folded = {name.casefold(): index for name, index in names.items()}
        if label.strip().casefold() in folded:
            return folded[label.strip().casefold()]
        _refuse_path(label)
        raise unknown_name("category", label, names)
    if isinstance(label, os.PathLike):
        _refuse_path(os.fsdecode(label))
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise UserError(f"class label {label!r} is a {type(label).__name__}: give an id, a name, or a list of either")
    if not 0 <= label < num_classes:
        raise UserError(f"class label {int(label)} is not a class of this model: give 0 to {num_classes - 1}")
    return int(label)


def _refuse_path(label: str) -> None:
    """Say what to do with the name of a picture's file in place of a category."""
    if "://" in label or label.lower().endswith(_PICTURES):
        kind = "URL: download it, and open it" if "://" in label else "path: open it"
        raise UserError(f"class label {shown(label)} is a {kind} with PIL.Image.open, and give the image")
