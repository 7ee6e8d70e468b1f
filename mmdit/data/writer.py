"""Writing one split of a dataset folder: files that appear whole or not at all, and their manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.data.lines import MANIFEST
from mmdit.errors import UserError
from mmdit.modalities import IMAGE, build_codec, get_modalities
from mmdit.modalities.files import is_whole, png
from mmdit.names import DATASET, LATENTS
from mmdit.storage.files import atomic_file, write_atomically
from mmdit.storage.json_text import quoted, read_json
from mmdit.storage.names import MAX_BYTES, path_of, text_of

PNG = ".png"
_OWNERS = {DATASET: "a dataset", LATENTS: "the latents of a dataset"}  # file -> what the folder is that has it


def check_split(split: str) -> None:
    """Raise UserError if ``split`` is not a plain folder name."""
    if not split or not split.replace("-", "").replace("_", "").isalnum() or len(split.encode()) > MAX_BYTES:
        raise UserError(
            f"split {quoted(split)}: must be a folder name of letters, digits, '-' and '_', such as 'train'"
        )


def refuse_foreign(folder: Path, own: str = "") -> None:
    """Raise UserError where a folder that is to be written is a dataset or latents; ``own``: the file that is no other's."""
    for name, what in _OWNERS.items():
        if name != own and (folder / name).is_file():
            raise UserError(f"{folder}: is {what}, whose files would be mixed with others: choose another --output")


class DatasetWriter:
    """Writes ``<root>/<split>/<modality>/<id>.png``. Any number of processes may, as long as no two write one sample.

    Args:
        root: the dataset folder.
        split: name of a folder in it.
        depth_scale: metres per unit of the 16-bit depth.

    Raises:
        UserError: a split that is no plain name, or a folder of latents.
    """

    def __init__(self, root: str | Path, split: str, depth_scale: float = 0.001) -> None:
        check_split(split)
        refuse_foreign(Path(root), DATASET)
        self.folder = Path(root) / path_of(split)
        self.depth_scale = depth_scale

    def name(self, modality: str, sample_id: str, suffix: str = PNG) -> str:
        """Return the path as the manifest has it, relative to the split's folder."""
        return f"{modality}/{sample_id}{suffix}"

    def path(self, modality: str, sample_id: str, suffix: str = PNG) -> Path:
        """Return the file's path on this system."""
        return self.folder / path_of(self.name(modality, sample_id, suffix))

    def existing(self, modality: str) -> set[str]:
        """Return the ids of the samples whose file of this modality is there and whole: a disk may have lost what was written."""
        found = existing_stems(self.folder / modality, PNG)
        return {sample_id for sample_id in found if is_whole(self.path(modality, sample_id))}

    def save(self, modality: str, sample_id: str, array: np.ndarray) -> None:
        """Write one file.

        Args:
            modality: what the array is: rgb (H, W, 3) uint8; depth (H, W) metres, invalid where it is not positive, not
                finite or beyond 65535 units; normal (H, W, 3) unit vectors, or (0, 0, 0) where none is known;
                segmentation (H, W) ids from 0 to 65535.
            sample_id: may have slashes, which are folders.
            array: the raw values.
        """
        codec = build_codec(get_modalities([modality])[modality])
        write_atomically(self.path(modality, sample_id), png(codec.pixels(array, {"depth_scale": self.depth_scale})))

    def remove(self, modality: str, sample_id: str) -> None:
        """Remove one file, if it is there."""
        self.path(modality, sample_id).unlink(missing_ok=True)

    def store(self, modality: str, sample_id: str, suffix: str, content: bytes) -> None:
        """Write one file as it is: ``<root>/<split>/<modality>/<id><suffix>``, of a kind that the modality's codec reads."""
        write_atomically(self.path(modality, sample_id, suffix), content)

    def write_manifest(self, samples: Iterable[tuple[str, str | None]], modalities: Sequence[str]) -> int:
        """List the samples that have an RGB image, each with the modalities that are there; return how many they are.

        Args:
            samples: (id, category or None), in the order of the manifest.
            modalities: those of the dataset.
        """
        there = {modality: self.existing(modality) for modality in modalities}
        found = ((sample_id, category) for sample_id, category in samples if sample_id in there[IMAGE])
        rows = (
            (name, category, {m: self.name(m, name) for m in modalities if name in there[m]})
            for name, category in found
        )
        return self.write_rows(rows)

    def write_rows(self, rows: Iterable[tuple[str, str | None, Mapping[str, str]]]) -> int:
        """Write the manifest, of any length, and return how many lines it has; without any none is written.

        Args:
            rows: (id, category or None, modality -> ``name`` of its file), in the order of the manifest.
        """
        remaining = iter(rows)
        first = next(remaining, None)
        if first is None:
            return 0
        count = 0
        with atomic_file(self.folder / MANIFEST) as file:
            for sample_id, category, files in chain([first], remaining):
                row: dict[str, Any] = {"id": sample_id} | ({} if category is None else {"category": category})
                row |= files
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                count += 1
        return count


def existing_stems(root: Path, suffix: str) -> set[str]:
    """Return the files below a folder that end so, as paths in it without the suffix, with "/"."""
    found = set()
    for folder, _, names in os.walk(root):
        prefix = Path(folder).relative_to(root)
        found |= {text_of((prefix / name.removesuffix(suffix)).as_posix()) for name in names if name.endswith(suffix)}
    return found


def read_description(root: Path) -> dict[str, Any] | None:
    """Return what ``dataset.json`` holds, None without the file. Raises UserError if it can't be read."""
    path = root / DATASET
    if not path.exists():
        return None
    values = read_json(path, advice="choose another --output")
    if not isinstance(values, dict) or not isinstance(values.get("provenance"), dict):
        raise UserError(f"{path}: says nothing of its provenance; choose an empty folder for --output")
    return values


def write_description(root: Path, values: Mapping[str, Any]) -> None:
    """Write ``dataset.json``."""
    write_atomically(root / DATASET, json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")
