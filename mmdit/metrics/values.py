"""Errors of kinds of images without a special metric: plain maps, and pictures."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmdit.metrics.arrays import RunningMean, check_same_shape
from mmdit.modalities import Codec


class AbsoluteError:
    """Streaming mean over images of the mean absolute error, in raw units; pixels without a true value are left out.

    A prediction that is not finite at a true value makes the mean NaN: it is never dropped.
    """

    columns: ClassVar[tuple[str, ...]] = ("absolute_error",)
    higher_is_better: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self.mean = RunningMean()

    @classmethod
    def for_codec(cls, codec: Codec, depth_range: tuple[float, float]) -> AbsoluteError:
        return cls()

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one image, raw arrays of one shape. Raises ValueError for shapes that differ."""
        predicted, true = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        check_same_shape(predicted, true, "map")
        valid = np.isfinite(true)
        if valid.any():
            self.mean.update(np.abs(predicted[valid] - true[valid]).mean())

    def compute(self) -> dict[str, float]:
        """Return the mean, NaN where nothing was measured, and the number of images."""
        return {"absolute_error": self.mean.compute(), "num_images": self.mean.count}


class PeakSignalToNoise:
    """Streaming mean over pictures of the peak signal-to-noise ratio in dB: -10 log10(MSE), values in [0, 1]."""

    columns: ClassVar[tuple[str, ...]] = ("psnr",)
    higher_is_better: ClassVar[frozenset[str]] = frozenset({"psnr"})

    def __init__(self) -> None:
        self.mean = RunningMean()

    @classmethod
    def for_codec(cls, codec: Codec, depth_range: tuple[float, float]) -> PeakSignalToNoise:
        return cls()

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one picture, uint8 arrays of one shape. Raises ValueError for shapes that differ."""
        check_same_shape(np.asarray(prediction), np.asarray(truth), "picture")
        error = np.asarray(prediction, dtype=np.float64) - truth
        self.mean.update(-10 * np.log10(max((error**2).mean() / 255**2, 1e-10)))

    def compute(self) -> dict[str, float]:
        """Return the mean, NaN where nothing was measured, and the number of images."""
        return {"psnr": self.mean.compute(), "num_images": self.mean.count}
