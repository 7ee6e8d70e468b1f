"""Names of segmentation classes in a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit.errors import UserError
from mmdit.modalities.palette import class_palette
from mmdit.modalities.segmentation import SegmentationCodec
from mmdit.storage.json_text import read_json

MAX_CLASSES = 4096


def read_classes(path: Path) -> list[dict[str, Any]]:
    """Read classes, {"id", "name", "color"} each.

    Args:
        path: ``.json``: a list of such objects, as dataset.json has them; any other: a text with a name per line, the first
            of label 0, which get colours far from each other.

    Raises:
        UserError: no such file, no name in it, or what dataset.json may not hold.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a .json file, or a text with a name per line")
    if path.suffix.lower() == ".json":
        classes = read_json(path, advice="give a list of {id, name, color}, or a text with a name per line")
    else:
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise UserError(f"{path}: is no text in UTF-8: give a name per line, the first of label 0") from None
        while names and not names[-1]:
            names.pop()
        if not names or not all(names) or len(names) > MAX_CLASSES:
            raise UserError(
                f"{path}: has {len(names)} lines: give a name on each, the first of label 0, at most {MAX_CLASSES}"
            )
        colors = class_palette(len(names)).tolist()
        classes = [{"id": i, "name": name, "color": colors[i]} for i, name in enumerate(names)]
    facts, reasons = SegmentationCodec.read_facts({"segmentation_classes": classes})
    if reasons or not facts["segmentation_classes"]:
        raise UserError(f"{path}: {reasons[0] if reasons else 'names no class'}")
    return classes
