"""Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500), with any feature network.

The number depends on the network, its preprocessing and, through a bias of order 1 / N, on the number of samples:
compare only numbers with the same of all three.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmdit.metrics.arrays import Array, to_array


class FeatureStatistics:
    """Streaming mean (D,) and unbiased covariance (D, D) of features, float64, by Chan's parallel update."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def update(self, features: Any) -> None:
        """Add features (N, D). Raises ValueError for another shape or width, or values that are not finite."""
        batch = to_array(features).astype(np.float64)
        if batch.ndim != 2 or batch.shape[1] == 0 or (self.count and batch.shape[1] != len(self.mean)):
            width = len(self.mean) if self.count else "width"
            raise ValueError(f"features have shape {batch.shape}: give (samples, {width})")
        if not np.isfinite(batch).all():
            raise ValueError("features hold NaN or infinity: the network's output is not usable for a Fréchet distance")
        if len(batch) == 0:
            return
        if self.count == 0:
            self.mean, self._scatter = np.zeros(batch.shape[1]), np.zeros((batch.shape[1], batch.shape[1]))
        total = self.count + len(batch)
        batch_mean = batch.mean(axis=0)
        centred = batch - batch_mean
        difference = batch_mean - self.mean
        self._scatter += centred.T @ centred + np.outer(difference, difference) * (self.count * len(batch) / total)
        self.mean = self.mean + difference * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """(D, D), divided by N - 1. Raises ValueError with fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(mean1: Array, covariance1: Array, mean2: Array, covariance2: Array) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), the squared 2-Wasserstein distance of two Gaussians.

    The last trace is the sum of the singular values of S1^1/2 S2^1/2, and each root comes from an eigen-decomposition
    with rounding errors below zero set to zero: real and accurate for covariances of deficient rank too (fewer samples
    than features), where a general matrix square root of S1 S2 turns complex. Means (D,), covariances (D, D).

    Raises:
        ValueError: shapes that don't fit.
    """
    m1, m2 = np.asarray(mean1, dtype=np.float64), np.asarray(mean2, dtype=np.float64)
    s1, s2 = np.asarray(covariance1, dtype=np.float64), np.asarray(covariance2, dtype=np.float64)
    if m1.ndim != 1 or m1.shape != m2.shape or s1.shape != (len(m1), len(m1)) or s2.shape != s1.shape:
        raise ValueError(
            f"means {m1.shape}, {m2.shape} and covariances {s1.shape}, {s2.shape}: give (D,) and (D, D) of one width D"
        )
    cross = np.linalg.svd(_symmetric_root(s1) @ _symmetric_root(s2), compute_uv=False).sum()
    return float(max(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross, 0.0))


def _symmetric_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def feature_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Fréchet distance of two feature sets; NaN where one has fewer than two samples."""
    if min(first.count, second.count) < 2:
        return float("nan")
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
