"""Modalities of many samples against ground truth, whichever of them model and data have."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch

from mmdit.metrics.depth import DEPTH_RANGE, DepthMetrics
from mmdit.metrics.normal import NormalMetrics
from mmdit.metrics.samples import GroundTruth
from mmdit.metrics.segmentation import LabelSet, SegmentationMetrics
from mmdit.metrics.values import AbsoluteError, PeakSignalToNoise
from mmdit.modalities import IMAGE, Codec
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

T = TypeVar("T")


class MapMetric(Protocol):
    """Streaming errors of one modality.

    columns: what a table shows of ``compute``; higher_is_better: of these.
    """

    columns: ClassVar[tuple[str, ...]]
    higher_is_better: ClassVar[frozenset[str]]

    @classmethod
    def for_codec(cls, codec: Any, depth_range: tuple[float, float]) -> MapMetric:
        """Build it for a codec's raw values; depth_range: metres, see ``DepthMetrics``."""
        ...

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one sample, raw arrays. objects: (H, W) bool, or None = unknown; category: the sample's."""
        ...

    def compute(self) -> dict[str, float]:
        """Return metric -> value, NaN where nothing was measured."""
        ...


# A codec names its own (``Codec.metric``); one that is not here is measured by its absolute error.
METRICS: dict[str, type[MapMetric]] = {
    "depth": DepthMetrics,
    "normal": NormalMetrics,
    "segmentation": SegmentationMetrics,
    "psnr": PeakSignalToNoise,
    "absolute_error": AbsoluteError,
}


def metric_class(codec: Codec, table: Mapping[str, type[MapMetric]] = METRICS) -> type[MapMetric]:
    """Return what measures a codec's modality."""
    return table.get(codec.metric, AbsoluteError)


def measured(names: Iterable[str]) -> list[str]:
    """Return the modalities that are measured one by one: all but the image, which is judged as a set."""
    return [name for name in names if name != IMAGE]


def first_of_kind(codecs: Mapping[str, Codec], metric: str) -> str | None:
    """Return the first modality that is measured as ``metric``, or None."""
    return next((name for name, codec in codecs.items() if codec.metric == metric), None)


def codec_of_kind(codecs: Mapping[str, Codec], metric: str) -> Any:
    """Return the codec of the first modality that is measured as ``metric``, or None."""
    name = first_of_kind(codecs, metric)
    return None if name is None else codecs[name]


def label_set(pipe: MultimodalDiTPipeline) -> LabelSet | None:
    """The classes of a pipeline's segmentation; None where it has no segmentation."""
    codec = codec_of_kind(pipe.codecs, "segmentation")
    return None if codec is None else LabelSet.of_codec(codec)


def depth_space(pipe: MultimodalDiTPipeline) -> str | None:
    """The space of a pipeline's depth, "depth" or "disparity"; None where it has no depth."""
    codec = codec_of_kind(pipe.codecs, "depth")
    return None if codec is None else str(codec.space)


class MapMetrics:
    """Streaming metrics of every modality that is measured against a ground truth of its kind.

    Args:
        names: the modalities to measure; those without a codec, and the image, are passed over.
        codecs: modality -> codec; their labels, where they have them, say which pixels are objects.
        depth_range: metres, see ``DepthMetrics``.
        table: what measures each kind.
    """

    def __init__(
        self,
        names: Iterable[str],
        codecs: Mapping[str, Codec],
        depth_range: tuple[float, float] = DEPTH_RANGE,
        table: Mapping[str, type[MapMetric]] = METRICS,
    ) -> None:
        self.metrics: dict[str, MapMetric] = {
            name: metric_class(codecs[name], table).for_codec(codecs[name], depth_range)
            for name in measured(names)
            if name in codecs
        }
        self._labelled = first_of_kind(codecs, "segmentation")
        self._labels = None if self._labelled is None else LabelSet.of_codec(codecs[self._labelled])

    def update(self, prediction: Mapping[str, Any], truth: GroundTruth) -> None:
        """Add one sample: modality -> predicted map, as the pipeline returns it, against what the sample has."""
        objects = None
        if self._labels is not None and self._labelled is not None and self._labelled in truth.maps:
            objects = self._labels.objects(truth.maps[self._labelled])
        for name, metric in self.metrics.items():
            if name in truth.maps:
                metric.add(prediction[name], truth.maps[name], objects=objects, category=truth.category)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return modality -> metric -> value."""
        return {name: metric.compute() for name, metric in self.metrics.items()}


def map_metrics(pipe: MultimodalDiTPipeline, depth_range: tuple[float, float] = DEPTH_RANGE) -> MapMetrics:
    """Metrics of every modality of a pipeline."""
    return MapMetrics(pipe.modalities, pipe.codecs, depth_range)


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
        """Yield the last pair; a single sample has none."""
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


def unstack(output: Any, codecs: Mapping[str, Codec], count: int) -> list[dict[str, np.ndarray]]:
    """A pipeline's "np" output -> one dict of raw maps per sample, of the modalities of ``codecs``."""
    fields = {name: codec.from_output(output[name]) for name, codec in codecs.items()}
    return [{name: values[index] for name, values in fields.items()} for index in range(count)]


def others(codecs: Mapping[str, Codec]) -> dict[str, Codec]:
    """The codecs of all modalities but the image."""
    return {name: codecs[name] for name in measured(codecs)}
