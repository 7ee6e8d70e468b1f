"""Steps versus quality: one task with one sampler and one number of steps, on samples that are the same for every row.

Generated images are judged by the model itself: in one step, with its own sampler, whatever the row's, so that rows
differ in what made the image alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mmdit.errors import UserError, unknown_name
from mmdit.metrics.arrays import RunningMean
from mmdit.metrics.consistency import ConsistencyMetrics
from mmdit.metrics.evaluation import pooled_features
from mmdit.metrics.frechet import FeatureStatistics, feature_distance
from mmdit.metrics.maps import (
    METRICS,
    MapMetrics,
    batched,
    depth_space,
    first_of_kind,
    label_set,
    measured,
    metric_class,
    sample_generators,
    unstack,
)
from mmdit.metrics.samples import EvaluationSamples, GroundTruth
from mmdit.metrics.understanding import understand
from mmdit.modalities import IMAGE, MODALITIES, build_codecs
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

TASKS = ("understanding", "conditioning", "generation")
STEPS = (1, 2, 5, 10, 25, 50, 250)
GENERATION_COLUMNS = ("frechet_distance", "category_accuracy", "depth_normal_angle", "segmentation_agreement")
COST_COLUMNS = ("network_evaluations", "seconds_per_image")
HIGHER_IS_BETTER = frozenset({"category_accuracy", "segmentation_agreement"}).union(
    *(metric.higher_is_better for metric in METRICS.values())
)
# By these a task's rows are compared and drawn.
HEADLINES = {
    "understanding": ("depth_abs_rel", "normal_mean_angle", "segmentation_miou"),
    "conditioning": ("depth_abs_rel", "normal_mean_angle", "segmentation_miou"),
    "generation": ("frechet_distance", "category_accuracy", "depth_normal_angle"),
}


def columns() -> list[str]:
    """Names of all measures of a row: <modality>_<metric>, those of generation, and the cost."""
    codecs = build_codecs(MODALITIES)
    maps = [f"{name}_{column}" for name in measured(codecs) for column in metric_class(codecs[name]).columns]
    return [*maps, *GENERATION_COLUMNS, *COST_COLUMNS]


def higher_is_better(column: str) -> bool:
    """Whether more is better in a column."""
    return column in HIGHER_IS_BETTER or column.split("_", 1)[-1] in HIGHER_IS_BETTER


@dataclass(frozen=True, order=True)
class Row:
    """What a row of the table is about; ordered by cost, so that a sweep that is cut short has the cheap rows."""

    num_inference_steps: int
    task: str
    scheduler: str


def sweep_rows(tasks: Sequence[str], schedulers: Sequence[str], steps: Sequence[int]) -> list[Row]:
    """All combinations, cheapest first. Raises UserError for an unknown task, fewer than one step, or an empty list."""
    for name in tasks:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    for kind, names in (("task", tasks), ("scheduler", schedulers)):
        if not names:
            raise UserError(f"no {kind} is given: give at least one")
    if not steps or min(steps) < 1:
        raise UserError(f"steps are {list(steps)}: give numbers of at least 1")
    return sorted({Row(count, task, name) for count in steps for task in tasks for name in schedulers})


class StepSweep:
    """Measures rows of one model on one choice of samples.

    Args:
        pipe: the model; its own scheduler judges, and is left as it is.
        samples: the same for every row.
        network: feature network for the Fréchet distance, as ``evaluate`` takes it, or None.
        guidance_scale: on the class, in generation.
        condition: the modality that conditioning is given.
        seed: of all noise. Rows share it: the same initial noise for every sampler.
        batch_size: samples at a time; the numbers don't depend on it.
        span: depth range of the data, metres.

    Raises:
        UserError: a model or data without RGB, or a condition that one of them lacks.
    """

    def __init__(
        self,
        pipe: MultimodalDiTPipeline,
        samples: EvaluationSamples,
        network: Any,
        guidance_scale: float,
        condition: str,
        seed: int,
        batch_size: int,
        span: tuple[float, float],
    ) -> None:
        names = measured(samples.modalities)
        if IMAGE not in samples.modalities or not names:
            raise UserError(f"a sweep needs RGB and a map of it; model and data share {', '.join(samples.modalities)}")
        if condition not in names:
            raise unknown_name("condition of the sweep", condition, names)
        self.judge = pipe
        self.names, self.condition, self.network = names, condition, network
        self.guidance_scale, self.seed, self.batch_size, self.span = guidance_scale, seed, batch_size, span
        self.labels, self.space = label_set(pipe), depth_space(pipe)
        self.depth, self.normal, self.labelled = (
            first_of_kind(pipe.codecs, kind) for kind in ("depth", "normal", "segmentation")
        )
        self.samples: list[GroundTruth] = [sample for sample in samples if IMAGE in sample.maps]
        self.real = FeatureStatistics()
        self._add_features(self.real, [sample.maps[IMAGE] for sample in self.samples])

    def measure(self, row: Row, scheduler: SchedulerMixin) -> dict[str, float]:
        """Measures of one row, by column; a column that the task does not have is absent, an unmeasurable one NaN.

        ``scheduler`` is what ``row.scheduler`` names.
        """
        pipe = MultimodalDiTPipeline(**self.judge.components, **self.judge.parameters)
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        task = {"understanding": self._understand, "conditioning": self._condition, "generation": self._generate}
        seconds = RunningMean()
        measured = task[row.task](pipe, row.num_inference_steps, seconds)
        branches = 2 if row.task == "generation" and self.guidance_scale != 1 else 1
        return {
            **measured,
            "network_evaluations": pipe.num_timesteps * branches,
            "seconds_per_image": seconds.compute(),
        }

    def _batches(self) -> Iterator[list[GroundTruth]]:
        return batched(self.samples, self.batch_size)

    def _understand(self, pipe: MultimodalDiTPipeline, steps: int, seconds: RunningMean) -> dict[str, float]:
        metrics = MapMetrics(self.names, self.judge.codecs, self.span)
        for batch in self._batches():
            images, indices = [sample.maps[IMAGE] for sample in batch], [sample.index for sample in batch]
            with _timed(pipe, seconds, len(batch)):
                predictions = understand(pipe, images, indices, steps, self.seed)
            for prediction, truth in zip(predictions, batch, strict=True):
                metrics.update(prediction, truth)
        return _flat(metrics)

    def _condition(self, pipe: MultimodalDiTPipeline, steps: int, seconds: RunningMean) -> dict[str, float]:
        name = self.condition
        metrics = MapMetrics([name], self.judge.codecs, self.span)
        for whole in self._batches():
            batch = [s for s in whole if name in s.maps and pipe.codecs[name].has_values(s.maps[name])]
            if not batch:
                continue
            indices = [sample.index for sample in batch]
            with _timed(pipe, seconds, len(batch)):
                output = pipe(
                    conditions={name: [pipe.codecs[name].as_given(sample.maps[name]) for sample in batch]},
                    num_inference_steps=steps,
                    guidance_scale=1.0,
                    generator=sample_generators(self.seed, name, indices),
                    output_type="np",
                )
            images = [maps[IMAGE] for maps in unstack(output, {IMAGE: pipe.codecs[IMAGE]}, len(batch))]
            for prediction, truth in zip(understand(self.judge, images, indices, 1, self.seed), batch, strict=True):
                metrics.update(prediction, truth)
        return _flat(metrics)

    def _generate(self, pipe: MultimodalDiTPipeline, steps: int, seconds: RunningMean) -> dict[str, float]:
        features, consistency = FeatureStatistics(), ConsistencyMetrics(self.space, self.labels)
        category = RunningMean()
        for batch in self._batches():
            indices = [sample.index for sample in batch]
            labels = [sample.category if sample.category in pipe.labels else None for sample in batch]
            with _timed(pipe, seconds, len(batch)):
                output = pipe(
                    class_labels=labels,
                    num_inference_steps=steps,
                    guidance_scale=self.guidance_scale,
                    generator=sample_generators(self.seed, "generation", indices),
                    output_type="np",
                )
            generated = unstack(output, pipe.codecs, len(batch))
            images = [maps[IMAGE] for maps in generated]
            self._add_features(features, images)
            seen = understand(self.judge, images, indices, 1, self.seed)
            for maps, again, label in zip(generated, seen, labels, strict=True):
                if self.depth is not None and self.normal is not None:
                    consistency.update_geometry(maps[self.depth], maps[self.normal])
                if self.labels is not None and self.labelled is not None:
                    consistency.update_segmentation(maps[self.labelled], again[self.labelled])
                    wanted = self.labels.id_of(label)
                    if wanted is not None:
                        category.update(self.labels.majority_object(maps[self.labelled]) == wanted)
        agreement = consistency.compute()
        return {
            "frechet_distance": feature_distance(self.real, features),
            "category_accuracy": category.compute(),
            "depth_normal_angle": agreement["depth_normal_angle"],
            "segmentation_agreement": agreement["segmentation_agreement"],
        }

    def _add_features(self, statistics: FeatureStatistics, images: Sequence[np.ndarray]) -> None:
        if self.network is not None:
            for batch in batched(images, self.batch_size):
                statistics.update(pooled_features(self.network, batch, self.judge.execution_device))


class _timed:
    """Adds the wall-clock seconds per sample of a block, with the device's work done."""

    def __init__(self, pipe: MultimodalDiTPipeline, seconds: RunningMean, count: int) -> None:
        self.on_gpu, self.seconds, self.count = pipe.execution_device.type == "cuda", seconds, count

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.seconds.update(np.full(self.count, (time.perf_counter() - self.start) / self.count))


def _flat(metrics: MapMetrics) -> dict[str, float]:
    return {
        f"{modality}_{metric}": values[metric]
        for modality, values in metrics.compute().items()
        for metric in metrics.metrics[modality].columns
    }
