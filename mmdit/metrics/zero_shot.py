"""Zero-shot depth and normals as Marigold (arXiv 2312.02145) and DSINE (arXiv 2403.00712) measure them.

Depth: per image, scale and shift by least squares over the valid pixels, in depth or in disparity; then clipping to the
benchmark's range, ten errors, and their mean over images. Normals: angles over the valid pixels, averaged over all pixels
(DSINE) or over the images' means (Marigold). Predictions are resized to the ground truth, never the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from mmdit.errors import UserError
from mmdit.metrics.arrays import Array
from mmdit.metrics.depth import fit_scale_and_shift
from mmdit.metrics.geometry_benchmarks import GeometryBenchmark, GeometrySample, GeometrySamples
from mmdit.metrics.maps import batched, depth_space
from mmdit.metrics.normal import AngleHistogram, angle_degrees
from mmdit.metrics.tasks import TaskRunner
from mmdit.modalities import IMAGE
from mmdit.names import DEPTH_SPACES
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

MIN_DISPARITY, MIN_DEPTH = 1e-3, 1e-6
ANGLES = (5.0, 7.5, 11.25, 22.5, 30.0)
BINS_PER_DEGREE = 1000  # the median over pixels streams, and is as fine as that


def align(
    prediction: Array,
    target: Array,
    valid: Array,
    *,
    space: str,
    depth_range: tuple[float, float],
    max_fit_width: int | None = None,
) -> Array:
    """Fit a relative map (H, W) to metric depth (H, W) and return it as depth in metres, clipped to the range.

    Args:
        prediction: affine in ``space``, "depth" or "disparity".
        target: metres.
        valid: bool, the pixels to fit. In disparity, pixels at which the prediction is not positive are not fitted.
        depth_range: metres.
        max_fit_width: where the longer side has more pixels, columns are dropped for the fit, in proportion, as the
            reference's one-dimensional nearest-neighbour resampling does (its rows are all kept).

    Raises:
        UserError: an unknown space, or fewer than two pixels to fit.
    """
    if space not in DEPTH_SPACES:
        raise UserError(f"alignment space is {space!r}: give one of {', '.join(DEPTH_SPACES)}")
    reference = np.array(target, dtype=np.float64)
    fitted = np.array(valid, dtype=bool)
    if space == "disparity":
        fitted = fitted & (target > 0) & (prediction > 0)
        reference = np.divide(1.0, target, out=np.zeros_like(reference), where=target > 0)
    columns = _fit_columns(prediction.shape, max_fit_width)
    chosen = fitted[:, columns]
    if chosen.sum() < 2:
        raise UserError(f"{int(chosen.sum())} pixels can be fitted: a scale and a shift need at least 2")
    scale, shift = fit_scale_and_shift(prediction[:, columns][chosen], reference[:, columns][chosen])
    aligned = scale * prediction.astype(np.float64) + shift
    if space == "disparity":
        aligned = 1 / np.maximum(aligned, MIN_DISPARITY)
    return np.maximum(np.clip(aligned, *depth_range), MIN_DEPTH)


def _fit_columns(shape: tuple[int, ...], max_fit_width: int | None) -> Array:
    height, width = shape
    factor = 1.0 if max_fit_width is None else min(1.0, max_fit_width / max(height, width))
    return np.minimum(np.floor(np.arange(int(width * factor)) / factor).astype(np.int64), width - 1)


def depth_errors(estimate: Array, target: Array) -> dict[str, float]:
    """Errors of aligned depth against true depth, both (N,) in metres over valid pixels.

    abs_rel, sq_rel, rmse, rmse_log, log10, delta1 to delta3 (shares within factors 1.25, its square and its cube), i_rmse
    (1 / metres), silog (times 100).
    """
    difference, logarithm = estimate - target, np.log(estimate) - np.log(target)
    ratio = np.maximum(estimate / target, target / estimate)
    return {
        "abs_rel": float((np.abs(difference) / target).mean()),
        "sq_rel": float((difference**2 / target).mean()),
        "rmse": float(np.sqrt((difference**2).mean())),
        "rmse_log": float(np.sqrt((logarithm**2).mean())),
        "log10": float(np.abs(logarithm).mean() / np.log(10)),
        **{f"delta{power}": float((ratio < 1.25**power).mean()) for power in (1, 2, 3)},
        "i_rmse": float(np.sqrt(((1 / estimate - 1 / target) ** 2).mean())),
        "silog": float(100 * np.sqrt(max((logarithm**2).mean() - logarithm.mean() ** 2, 0))),
    }


def angle_errors(angles: Array) -> dict[str, float]:
    """mean_angle, median_angle, rmse_angle in degrees, and the shares below 5, 7.5, 11.25, 22.5 and 30 degrees."""
    return {
        "mean_angle": float(angles.mean()),
        "median_angle": float(np.median(angles)),
        "rmse_angle": float(np.sqrt((angles**2).mean())),
        **{_within(limit): float((angles < limit).mean()) for limit in ANGLES},
    }


def _within(limit: float) -> str:
    return f"within_{limit:g}".replace(".", "_")


class MeanOfImages:
    """Mean over images of each image's errors; one that can't be measured makes the mean NaN, none is dropped."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, errors: dict[str, float]) -> None:
        self.rows.append(errors)

    def compute(self) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in self.rows])) for name in (self.rows[0] if self.rows else ())}


class AnglesOfPixels:
    """``angle_errors`` over all pixels of all images; the median is that of bins of a thousandth of a degree."""

    def __init__(self) -> None:
        self.total, self.squares = 0.0, 0.0
        self.below = np.zeros(len(ANGLES), dtype=np.int64)
        self.histogram = AngleHistogram(BINS_PER_DEGREE)

    def add(self, angles: Array) -> None:
        self.total += float(angles.sum())
        self.squares += float((angles**2).sum())
        self.below += [(angles < limit).sum() for limit in ANGLES]
        self.histogram.add(angles)

    def compute(self) -> dict[str, float]:
        count = self.histogram.count
        if count == 0:
            return {}
        return {
            "mean_angle": self.total / count,
            "median_angle": sum(self.histogram.middle()) / 2 if np.isfinite(self.total) else float("nan"),
            "rmse_angle": float(np.sqrt(self.squares / count)),
            **{_within(limit): int(below) / count for limit, below in zip(ANGLES, self.below, strict=True)},
        }


class AnglesOfImages:
    """``angle_errors`` of each image, and their mean over images."""

    def __init__(self) -> None:
        self.images = MeanOfImages()

    def add(self, angles: Array) -> None:
        self.images.add(angle_errors(angles))

    def compute(self) -> dict[str, float]:
        return self.images.compute()


# ``GeometryBenchmark.average`` -> what angles are averaged by
ANGLE_AVERAGES: dict[str, type[AnglesOfImages] | type[AnglesOfPixels]] = {
    "images": AnglesOfImages,
    "pixels": AnglesOfPixels,
}


class DepthErrors:
    """Errors of predicted depth, each image aligned by itself, the mean over images."""

    def __init__(self, benchmark: GeometryBenchmark, space: str) -> None:
        self.benchmark, self.space, self.images = benchmark, space, MeanOfImages()

    def add(self, prediction: Array, sample: GeometrySample) -> None:
        """Measure depth (H, W). Raises UserError, which names the sample, where it can't be aligned."""
        try:
            estimate = align(
                prediction,
                sample.target,
                sample.valid,
                space=self.space,
                depth_range=self.benchmark.depth_range,
                max_fit_width=self.benchmark.max_fit_width,
            )
        except UserError as error:
            raise UserError(f"{sample.id}: {error}") from None
        self.images.add(depth_errors(estimate[sample.valid], sample.target[sample.valid]))

    def compute(self) -> dict[str, float]:
        return self.images.compute()


class NormalErrors:
    """Errors of predicted normals, averaged as the benchmark does."""

    def __init__(self, benchmark: GeometryBenchmark) -> None:
        self.average = ANGLE_AVERAGES[benchmark.average]()

    def add(self, prediction: Array, sample: GeometrySample) -> None:
        """Measure normals (H, W, 3)."""
        self.average.add(angle_degrees(prediction[sample.valid], sample.target[sample.valid]))

    def compute(self) -> dict[str, float]:
        return self.average.compute()


def evaluate_geometry(
    pipe: MultimodalDiTPipeline,
    samples: GeometrySamples,
    *,
    num_inference_steps: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    size: tuple[int, int] | None = None,
    alignment: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict depth or normals of a benchmark from RGB and return its errors and the protocol they were measured with.

    Args:
        pipe: a pipeline with RGB and the benchmark's modality.
        samples: the benchmark.
        num_inference_steps, seed: of the prediction; each image has its own noise.
        batch_size: images at a time; the errors don't depend on it.
        size: (height, width) in pixels that images are resized to for the model; None = the model's own.
        alignment: "depth" or "disparity"; None = the space of the model's depth.
        progress: show a bar.

    Raises:
        UserError: a model without the modality, or a file of the benchmark that can't be read.
    """
    benchmark = samples.benchmark
    for name in (IMAGE, benchmark.modality):
        if name not in pipe.modalities:
            raise UserError(f"the model has no {name}: it has {', '.join(pipe.modalities)}")
    space = (alignment or str(depth_space(pipe))) if benchmark.channels is None else None
    tasks = TaskRunner(pipe, num_inference_steps, seed=seed)
    errors: NormalErrors | DepthErrors
    errors = NormalErrors(benchmark) if space is None else DepthErrors(benchmark, space)
    num_skipped, valid_pixels = 0, 0
    with tqdm(total=len(samples), unit="image", disable=not progress) as bar:
        for prediction, sample in _predictions(tasks, samples, size, batch_size):
            bar.update()
            valid_pixels += int(sample.valid.sum())
            if sample.valid.sum() < 2:
                num_skipped += 1
            else:
                errors.add(prediction, sample)
    return {
        benchmark.modality: {
            **errors.compute(),
            "num_images": len(samples) - num_skipped,
            "num_skipped": num_skipped,
            "valid_pixels": valid_pixels,
        },
        "protocol": {
            "crop": samples.crop,
            "depth_range": list(benchmark.depth_range) if space is not None else None,
            "alignment": None if space is None else f"least-squares scale and shift per image, in {space}",
            "max_fit_width": benchmark.max_fit_width,
            "average": f"over {benchmark.average}",
        },
    }


def _predictions(
    tasks: TaskRunner, samples: GeometrySamples, size: tuple[int, int] | None, batch_size: int
) -> Iterator[tuple[Array, GeometrySample]]:
    for indices in batched(range(len(samples)), batch_size):
        batch = [samples[index] for index in indices]
        yield from zip(_predict(tasks, batch, indices, samples.benchmark.modality, size), batch, strict=True)


def _predict(
    tasks: TaskRunner, batch: list[GeometrySample], indices: Sequence[int], modality: str, size: tuple[int, int] | None
) -> list[Array]:
    """Maps of the ground truth's size, float64: depth (H, W) or normals (H, W, 3)."""
    height, width = size or (None, None)
    native = size or tasks.pipe.native_shape
    pictures = [Image.fromarray(sample.rgb).resize(native[::-1], Image.Resampling.LANCZOS) for sample in batch]
    predictions = tasks.understand(pictures, indices, height=height, width=width)
    return [resize_map(maps[modality], sample.valid.shape) for maps, sample in zip(predictions, batch, strict=True)]


def resize_map(values: Array, size: tuple[int, ...]) -> Array:
    """Resize depth (h, w) or vectors (h, w, 3) to (H, W), bilinear and antialiased, float64; vectors keep no length."""
    planes = torch.from_numpy(np.atleast_3d(values).astype(np.float64)).permute(2, 0, 1)[None]
    if planes.shape[-2:] != tuple(size):
        planes = F.interpolate(planes, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    resized = planes[0].permute(1, 2, 0).numpy()
    return resized[..., 0] if values.ndim == 2 else resized
