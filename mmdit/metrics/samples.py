"""The samples a model is measured on: raw ground truth at the model's size, a fixed choice in a fixed order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit.data.manifest import DatasetInfo, Sample, read_dataset_info, read_manifest
from mmdit.data.transforms import JointTransform, crop_and_resize
from mmdit.errors import UserError
from mmdit.modalities import build_codecs
from mmdit.modalities.modality import Modality
from mmdit.modalities.sample import read_sample


@dataclass(frozen=True)
class GroundTruth:
    """One sample in raw units; ``maps`` has no key for a modality that it lacks.

    maps: rgb uint8 (H, W, 3); depth float32 (H, W), metres, 0 = invalid; normal float32 (H, W, 3), unit, camera frame;
    segmentation int64 (H, W), label ids.
    """

    index: int
    id: str
    category: str | None
    maps: Mapping[str, np.ndarray]


class EvaluationSamples:
    """``num_samples`` of a split, read one by one.

    The choice is drawn once from ``seed`` and stays in the drawn order, so that neighbours are strangers even where the
    manifest is sorted by category: the shuffled controls pair neighbours. Images are cropped in the middle and resized.

    Args:
        root, split: the dataset.
        modalities: the model's; those that the dataset lacks are left out.
        num_samples: None = the whole split; a split with fewer is used whole.
        size: in pixels, one number for a square or (height, width).
        seed: of the choice.
        allow_outside: accept a manifest that names files outside ``root``.

    Raises:
        UserError: no dataset or split there, num_samples < 1, or no modality in common.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        modalities: Mapping[str, Modality],
        size: int | tuple[int, int],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        allow_outside: bool = False,
    ) -> None:
        if num_samples is not None and num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: give a whole number, at least 1")
        self.info: DatasetInfo = read_dataset_info(root, allow_outside=allow_outside)
        self.modalities = {name: record for name, record in modalities.items() if name in self.info.modalities}
        if not self.modalities:
            raise UserError(
                f"{root} has {', '.join(self.info.modalities)}, none of the model's {', '.join(modalities)}"
            )
        samples = read_manifest(self.info, split)
        order = np.random.default_rng(seed).permutation(len(samples))
        self.samples: list[Sample] = [samples[index] for index in order[:num_samples]]
        self._rest = [samples[index] for index in order[len(self.samples) :]]
        self.codecs = build_codecs(self.modalities)
        self.transform = JointTransform(size)

    def others(self) -> EvaluationSamples:
        """As many other samples of the split, of the same categories as far as it has them; none where it has fewer left.

        With a hundred of ten categories, other shares of them would be half of the distance between two sets of images.
        """
        other = copy.copy(self)
        other.samples = []
        if len(self._rest) < len(self):
            return other
        left: dict[int, list[Sample]] = {}
        for sample in reversed(self._rest):
            left.setdefault(sample.category, []).append(sample)
        alike = [left[sample.category].pop() for sample in self.samples if left.get(sample.category)]
        chosen = {sample.id for sample in alike}
        unlike = [sample for sample in self._rest if sample.id not in chosen]
        other.samples = alike + unlike[: len(self) - len(alike)]
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[GroundTruth]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> GroundTruth:
        """Read one sample. Raises UserError for a file that can't be read; it names the sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self.samples[index]
        files = {name: path for name in self.modalities if (path := sample.files.get(name)) is not None}
        try:
            raw = read_sample(files, self.codecs, self.info.facts)
        except UserError as error:
            raise UserError(f"sample {sample.id!r}: {error}") from None
        if raw:
            draw = self.transform.draw(*next(iter(raw.values())).shape[:2])
            raw = {name: crop_and_resize(array, draw, self.codecs[name]) for name, array in raw.items()}
        category = self.info.categories[sample.category] if sample.category >= 0 else None
        return GroundTruth(index, sample.id, category, raw)
