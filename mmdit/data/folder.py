"""A dataset folder (``dataset.json``, one manifest per split) as aligned, encoded tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmdit.data.manifest import Sample, modalities_from_dataset, read_dataset_info, read_manifest
from mmdit.data.transforms import JointTransform
from mmdit.errors import UserError
from mmdit.modalities import build_codecs
from mmdit.modalities.modality import Modality
from mmdit.modalities.sample import read_sample


class AlignedFolder(Dataset):
    """Map-style dataset over one split.

    An item is ``{"id": str, "category": int (-1 = none), "present": (M,) bool, <modality>: (3, H, W) float32}``, images
    in [-1, 1]. A modality that the manifest does not list is zeros and ``present`` is False; a file that is listed but
    can't be read is a UserError that names the sample and the file. No sample ever stands in for another.

    Args:
        root: folder with ``dataset.json``.
        split: folder inside it.
        modalities: records, in the order of ``present``; None = all of the dataset's (``modalities_from_dataset``).
        size: output size, see ``JointTransform``; None keeps the files' size.
        mirrored: append every sample once more, mirrored: item n + i is item i flipped.
        allow_outside: accept a manifest that names files outside ``root``.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        modalities: Mapping[str, Modality] | None = None,
        size: int | tuple[int, int] | None = None,
        mirrored: bool = False,
        *,
        allow_outside: bool = False,
    ) -> None:
        self.info = read_dataset_info(root, allow_outside=allow_outside)
        self.split = split
        self.samples: list[Sample] = read_manifest(self.info, split)
        self.modalities = dict(modalities) if modalities is not None else modalities_from_dataset(self.info)
        self.codecs = build_codecs(self.modalities)
        self.transform = JointTransform(size)
        self.mirrored = mirrored

    def __len__(self) -> int:
        return len(self.samples) * (2 if self.mirrored else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self.samples[index % len(self.samples)]
        files = {name: path for name in self.modalities if (path := sample.files.get(name)) is not None}
        if not files:
            raise UserError(
                f"sample {sample.id!r} of {self.info.root / self.split} has none of {', '.join(self.modalities)}"
            )
        try:
            raw = read_sample(files, self.codecs, self.info.facts)
        except UserError as error:
            raise UserError(f"sample {sample.id!r}: {error}") from None
        try:
            images = self.transform(raw, self.codecs)
        except UserError as error:
            listed = ", ".join(map(str, files.values()))
            raise UserError(f"sample {sample.id!r}: {error} ({listed})") from None
        if index >= len(self.samples):
            images = {name: self.codecs[name].flip(image) for name, image in images.items()}
        blank = torch.zeros_like(next(iter(images.values())))
        return {
            "id": sample.id,
            "category": sample.category,
            "present": torch.tensor([name in images for name in self.modalities]),
            **{name: images.get(name, blank) for name in self.modalities},
        }

    def class_numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        """Rows of the segmentation's palette, by the names of its classes. Raises UserError for one that it lacks."""
        codec: Any = self.codecs["segmentation"]
        if lacking := [name for name in names if name not in codec.names]:
            raise UserError(
                f"{self.info.root}: has no segmentation class {lacking[0]!r}, its classes are {', '.join(codec.names)}"
            )
        return tuple(codec.names.index(name) for name in names)

    def first_good(self) -> dict[str, Any]:
        """Return the first item that can be read. Raises the first one's error where none can."""
        first: UserError | None = None
        for index in range(len(self.samples)):
            try:
                return self[index]
            except UserError as error:
                first = first or error
        assert first is not None
        raise first


def stack_modalities(batch: Mapping[str, Any], modalities: Mapping[str, Modality]) -> Tensor:
    """Stack a collated batch's images along the modality axis, (B, M, 3, H, W)."""
    return torch.stack([batch[name] for name in modalities], dim=1)
