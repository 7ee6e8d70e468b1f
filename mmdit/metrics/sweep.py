"""Steps versus quality: one task with one sampler and one number of steps, on samples that are the same for every row.

Generated images are judged by the model itself: in one step, with its own sampler, whatever the row's, so that rows
differ in what made the image alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mmdit.errors import UserError, unknown_name
from mmdit.metrics.arrays import RunningMean
from mmdit.metrics.consistency import ConsistencyMetrics
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
)
from mmdit.metrics.samples import EvaluationSamples, GroundTruth
from mmdit.metrics.tasks import TaskRunner, can_condition, chosen_tasks, class_labels, pooled_features
from mmdit.modalities import IMAGE, MODALITIES, build_codecs
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

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
    tasks = chosen_tasks(tasks)
    if not schedulers:
        raise UserError("no scheduler is given: give at least one")
    if not steps or min(steps) < 1:
        raise UserError(f"steps are {list(steps)}: give numbers of at least 1")
    return sorted({Row(count, task, name) for count in steps for task in tasks for name in schedulers})


class StepSweep:
    """Measures rows of one model on one choice of samples.

    Args:
        pipe: the model; its own scheduler judges, and stays unchanged.
        samples: the same for every row.
        network: feature network for the Fréchet distance, as ``evaluate`` takes it, or None.
        guidance_scale: on the class, in generation.
        internal_guidance_scale: of all tasks but understanding.
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
        *,
        network: Any,
        guidance_scale: float,
        internal_guidance_scale: float = 1.0,
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
        self.judge = TaskRunner(pipe, 1, seed=seed)
        self.categories = samples.info.categories
        self.names, self.condition, self.network = names, condition, network
        self.internal_guidance_scale = internal_guidance_scale
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
        own = self.judge.pipe
        pipe = MultimodalDiTPipeline(**own.components, **own.parameters)
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        tasks = TaskRunner(
            pipe,
            row.num_inference_steps,
            guidance_scale=self.guidance_scale,
            internal_guidance_scale=self.internal_guidance_scale,
            seed=self.seed,
        )
        measure = {"understanding": self._understand, "conditioning": self._condition, "generation": self._generate}
        measured = measure[row.task](tasks)
        branches = 2 if row.task == "generation" and self.guidance_scale != 1 else 1
        return {
            **measured,
            "network_evaluations": pipe.num_timesteps * branches,
            "seconds_per_image": tasks.seconds[row.task].compute(),
        }

    def _batches(self) -> Iterator[list[GroundTruth]]:
        return batched(self.samples, self.batch_size)

    def _understand(self, tasks: TaskRunner) -> dict[str, float]:
        metrics = MapMetrics(self.names, self.judge.pipe.codecs, self.span)
        for batch in self._batches():
            images, indices = [sample.maps[IMAGE] for sample in batch], [sample.index for sample in batch]
            for prediction, truth in zip(tasks.understand(images, indices), batch, strict=True):
                metrics.update(prediction, truth)
        return _flat(metrics)

    def _condition(self, tasks: TaskRunner) -> dict[str, float]:
        name = self.condition
        metrics = MapMetrics([name], self.judge.pipe.codecs, self.span)
        for whole in self._batches():
            batch = [sample for sample in whole if can_condition(tasks.pipe, name, sample)]
            if not batch:
                continue
            images = [maps[IMAGE] for maps in tasks.condition(name, batch)]
            judged = self.judge.understand(images, [sample.index for sample in batch])
            for prediction, truth in zip(judged, batch, strict=True):
                metrics.update(prediction, truth)
        return _flat(metrics)

    def _generate(self, tasks: TaskRunner) -> dict[str, float]:
        features, consistency = FeatureStatistics(), ConsistencyMetrics(self.space, self.labels)
        category = RunningMean()
        for batch in self._batches():
            indices = [sample.index for sample in batch]
            labels = class_labels(tasks.pipe, batch, self.categories)
            generated = tasks.generate(labels, indices)
            images = [maps[IMAGE] for maps in generated]
            self._add_features(features, images)
            seen = self.judge.understand(images, indices)
            for maps, again, sample, label in zip(generated, seen, batch, labels, strict=True):
                if self.depth is not None and self.normal is not None:
                    consistency.update_geometry(maps[self.depth], maps[self.normal])
                if self.labels is not None and self.labelled is not None:
                    consistency.update_segmentation(maps[self.labelled], again[self.labelled])
                    wanted = None if label is None else self.labels.id_of(sample.category)
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
                statistics.update(pooled_features(self.network, batch, self.judge.pipe.execution_device))


def _flat(metrics: MapMetrics) -> dict[str, float]:
    return {
        f"{modality}_{metric}": values[metric]
        for modality, values in metrics.compute().items()
        for metric in metrics.metrics[modality].columns
    }
