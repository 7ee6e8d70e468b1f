"""How different the RGB images of one map are, beside how well each keeps to it: MMGen's figure of diversity (2503.20644)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from mmdit.metrics.arrays import Array, RunningMean
from mmdit.metrics.maps import MapMetrics, PreviousPairs, batched
from mmdit.metrics.samples import GroundTruth
from mmdit.metrics.tasks import Maps, TaskRunner, pooled_features
from mmdit.modalities import IMAGE

NOISE = "diversity"


@dataclass(frozen=True)
class ImagesOfMap:
    """The images of one map.

    truth: the sample whose map was given; images: uint8 (H, W, 3) each; errors: of each, between the map that the model sees in
    it and the given one; distance, feature_distance: means over their pairs.
    """

    truth: GroundTruth
    images: tuple[Array, ...]
    errors: tuple[float, ...]
    distance: float
    feature_distance: float


def pairwise_distance(pictures: Sequence[Array]) -> float:
    """Mean over pairs of uint8 pictures (H, W, 3) of their root mean square difference, sRGB in [0, 1]; NaN without a pair."""
    values = [np.asarray(picture, dtype=np.float64) / 255 for picture in pictures]
    mean = RunningMean()
    for one, other in combinations(values, 2):
        mean.update(np.sqrt(((one - other) ** 2).mean()))
    return mean.compute()


def pairwise_angle(features: Any) -> float:
    """Mean over all pairs of vectors (N, D) of 1 - cosine; NaN without a pair."""
    vectors = np.asarray(features, dtype=np.float64)
    if len(vectors) < 2:
        return float("nan")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
    return float((1 - cosines).mean())


class DiversityMeasure:
    """Makes and measures images of maps.

    Args:
        tasks: the model, and its steps.
        given: the modality that is given; its first metric says how well an image keeps to it.
        num_images: of each map, each with noise of its own.
        batch_size: images at a time; the numbers don't depend on it.
        network: a feature network, or None: distances of features are NaN then.
        span: depth range of the data, metres.
    """

    def __init__(
        self,
        tasks: TaskRunner,
        given: str,
        num_images: int,
        *,
        batch_size: int,
        network: Any,
        span: tuple[float, float],
    ) -> None:
        self.tasks, self.given, self.num_images = tasks, given, num_images
        self.batch_size, self.network, self.span = batch_size, network, span
        self.metric = self._metrics().metrics[given].columns[0]

    def of(self, samples: Iterable[GroundTruth]) -> tuple[list[ImagesOfMap], dict[str, Any]]:
        """Measure each sample's map; returns the images, and the controls.

        Controls: ``other_map``, the error where images are judged by the map of the sample after theirs; ``real_images``, the
        error of what the model sees in the samples' own images, and the distances between these, which show different scenes.
        """
        made: list[ImagesOfMap] = []
        other, real, pairs = RunningMean(), RunningMean(), PreviousPairs()
        for truth in samples:
            images, seen = self._make(truth)
            errors = tuple(self._error(maps, truth) for maps in seen)
            made.append(
                ImagesOfMap(
                    truth, tuple(images), errors, pairwise_distance(images), pairwise_angle(self._features(images))
                )
            )
            for previous, its_truth in pairs.add(seen, truth):
                other.update([self._error(maps, its_truth) for maps in previous])
            if IMAGE in truth.maps:
                (own,) = self.tasks.understand([truth.maps[IMAGE]], [truth.index], noise=f"{NOISE}.real")
                real.update(self._error(own, truth))
        for previous, its_truth in pairs.close():
            other.update([self._error(maps, its_truth) for maps in previous])
        real_images = [each.truth.maps[IMAGE] for each in made if IMAGE in each.truth.maps]
        return made, {
            "other_map": {self.metric: other.compute()},
            "real_images": {
                self.metric: real.compute(),
                "distance": pairwise_distance(real_images),
                "feature_distance": pairwise_angle(self._features(real_images)),
            },
        }

    def _make(self, truth: GroundTruth) -> tuple[list[Array], list[Maps]]:
        """Images of one map, and what the model sees in them."""
        images: list[Array] = []
        seen: list[Maps] = []
        for indices in batched(range(self.num_images), self.batch_size):
            copies = [replace(truth, index=index) for index in indices]
            new = [maps[IMAGE] for maps in self.tasks.condition(self.given, copies, noise=f"{NOISE}.{truth.index}")]
            seen += self.tasks.understand(new, indices, noise=f"{NOISE}.{truth.index}.seen")
            images += new
        return images, seen

    def _metrics(self) -> MapMetrics:
        return MapMetrics([self.given], self.tasks.pipe.codecs, self.span)

    def _error(self, maps: Maps, truth: GroundTruth) -> float:
        metrics = self._metrics()
        metrics.update(maps, truth)
        return float(metrics.compute()[self.given][self.metric])

    def _features(self, images: Sequence[Array]) -> Array:
        if self.network is None:
            return np.zeros((0, 1))
        device = self.tasks.pipe.execution_device
        parts = [
            pooled_features(self.network, batch, device).cpu().numpy() for batch in batched(images, self.batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 1))


def summary(made: Sequence[ImagesOfMap], metric: str) -> dict[str, float]:
    """Means over maps, and the deviation of ``metric`` over all images."""
    errors = [value for each in made for value in each.errors]
    return {
        "distance": float(np.mean([each.distance for each in made])),
        "feature_distance": float(np.mean([each.feature_distance for each in made])),
        metric: float(np.mean(errors)),
        f"{metric}_deviation": float(np.std(errors)),
    }
