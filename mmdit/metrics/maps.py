"""Depth, normals and segmentation of many samples against ground truth, whichever of them model and data have."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from mmdit.metrics.depth import DEPTH_RANGE, DepthMetrics
from mmdit.metrics.normal import NormalMetrics
from mmdit.metrics.samples import GroundTruth
from mmdit.metrics.segmentation import LabelSet, SegmentationMetrics
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

T = TypeVar("T")
MEASURED = ("depth", "normal", "segmentation")


def label_set(pipe: MultimodalDiTPipeline) -> LabelSet | None:
    """The classes of a pipeline's segmentation; None where it has no segmentation."""
    if "segmentation" not in pipe.modalities:
        return None
    codec: Any = pipe.codecs["segmentation"]
    return LabelSet([{"id": int(i), "name": name} for i, name in zip(codec.ids.tolist(), codec.names, strict=True)])


def depth_space(pipe: MultimodalDiTPipeline) -> str | None:
    """The space of a pipeline's depth, "depth" or "disparity"; None where it has no depth."""
    return str(pipe.modalities["depth"].settings["space"]) if "depth" in pipe.modalities else None


class MapMetrics:
    """Streaming metrics of every modality that is measured against a ground truth of its kind.

    Args:
        names: the modalities to measure; others are passed over.
        space: of predicted depth; labels: of the segmentation; depth_range: metres, see ``DepthMetrics``.
    """

    def __init__(
        self,
        names: Iterable[str],
        space: str | None = None,
        labels: LabelSet | None = None,
        depth_range: tuple[float, float] = DEPTH_RANGE,
    ) -> None:
        chosen = set(names)
        self.labels = labels
        self.depth = DepthMetrics(space, depth_range) if "depth" in chosen and space is not None else None
        self.normal = NormalMetrics() if "normal" in chosen else None
        self.segmentation = SegmentationMetrics(labels) if "segmentation" in chosen and labels is not None else None

    def update(self, prediction: Mapping[str, Any], truth: GroundTruth) -> None:
        """Add one sample: modality -> predicted map, as the pipeline returns it, against what the sample has."""
        maps = truth.maps
        objects = None
        if self.labels is not None and "segmentation" in maps:
            objects = self.labels.objects(maps["segmentation"])
        if self.depth is not None and "depth" in maps:
            self.depth.update(prediction["depth"], maps["depth"], objects)
        if self.normal is not None and "normal" in maps:
            self.normal.update(prediction["normal"], maps["normal"], objects)
        if self.segmentation is not None and "segmentation" in maps:
            self.segmentation.update(prediction["segmentation"], maps["segmentation"], truth.category)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return modality -> metric -> value."""
        metrics = {"depth": self.depth, "normal": self.normal, "segmentation": self.segmentation}
        return {name: metric.compute() for name, metric in metrics.items() if metric is not None}


def map_metrics(pipe: MultimodalDiTPipeline, depth_range: tuple[float, float] = DEPTH_RANGE) -> MapMetrics:
    """Metrics of every modality of a pipeline that can be measured."""
    return MapMetrics(pipe.modalities, depth_space(pipe), label_set(pipe), depth_range)


class PreviousPairs:
    """The wrong-image control: each sample's truth with the prediction of the one before, the first with the last's."""

    def __init__(self) -> None:
        self._first: Any = None
        self._previous: Any = None
        self.count = 0

    def add(self, prediction: T, truth: Any) -> Iterator[tuple[T, Any]]:
        """Yield the pair that this sample completes."""
        if self.count:
            yield self._previous, truth
        else:
            self._first = truth
        self._previous, self.count = prediction, self.count + 1

    def close(self) -> Iterator[tuple[Any, Any]]:
        """Yield the last pair; of a single sample there is none."""
        if self.count > 1:
            yield self._previous, self._first


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to ``size`` items (itertools.batched is Python 3.12's)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def sample_generators(seed: int, task: str, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample, a function of (seed, task, index): results don't depend on the batch size."""
    seeds = [
        np.random.SeedSequence([seed, zlib.crc32(task.encode()), index]).generate_state(1, np.uint64)[0]
        for index in indices
    ]
    return [torch.Generator().manual_seed(int(value) % 2**63) for value in seeds]


def unstack(output: Any, names: Iterable[str], count: int) -> list[dict[str, np.ndarray]]:
    """A pipeline's "np" output -> one dict of maps per sample, rgb as uint8."""
    fields = {name: np.asarray(output[name]) for name in names}
    if "rgb" in fields:
        fields["rgb"] = (fields["rgb"] * 255).round().astype(np.uint8)
    return [{name: values[index] for name, values in fields.items()} for index in range(count)]
