"""The three parts of ``mmdit demo``: each a picture and the numbers measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit.cli.common.pictures import labelled_grid
from mmdit.errors import UserError
from mmdit.metrics.consistency import ConsistencyMetrics
from mmdit.metrics.depth import DepthMetrics
from mmdit.metrics.maps import label_set, map_metrics
from mmdit.metrics.report import depth_range
from mmdit.metrics.samples import EvaluationSamples, GroundTruth
from mmdit.metrics.tasks import TaskRunner
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

Arrays = dict[str, np.ndarray]
Part = tuple[Image.Image, dict[str, Any], int]
NUM_CONDITIONED = 5
NEEDED = {"rgb", "depth", "normal", "segmentation"}


@dataclass(frozen=True)
class Showcase:
    """The model with its settings, and the range of depth in metres, which all parts share."""

    tasks: TaskRunner
    depth_range: tuple[float, float]

    @property
    def pipe(self) -> MultimodalDiTPipeline:
        return self.tasks.pipe

    def picture(self, name: str, array: np.ndarray) -> np.ndarray:
        """A raw array of a modality as (H, W, 3) uint8."""
        return self.pipe.codecs[name].picture(array)


def load_scenes(pipe: MultimodalDiTPipeline, data: Path) -> tuple[list[GroundTruth], tuple[float, float]]:
    """Read a dataset's test split at the model's size, by id, and the range of its depth in metres.

    Raises:
        UserError: it lacks a modality of the model, or has other classes.
    """
    samples = EvaluationSamples(data, "test", pipe.modalities, pipe.native_shape)
    labels = label_set(pipe)
    classes = [(entry["id"], entry["name"]) for entry in samples.info.segmentation_classes or ()]
    if labels is not None and classes != list(zip(labels.ids.tolist(), labels.names, strict=True)):
        raise UserError(f"--data {data}: its segmentation classes are not the model's")
    scenes = sorted(samples, key=lambda scene: scene.id)
    for scene in scenes:
        for name in {*pipe.modalities, *NEEDED} - scene.maps.keys():
            raise UserError(f"--data {data}: sample {scene.id} has no {name}, which the demo shows")
    return scenes, depth_range(samples.info.depth_scale)


def show_generate(showcase: Showcase, scenes: Sequence[GroundTruth]) -> Part:
    """Categories -> all modalities, one row each. ``scenes`` are not needed."""
    ids = list(showcase.pipe.id2label)
    outputs = showcase.tasks.generate(ids, range(len(ids)))
    names = list(showcase.pipe.modalities)
    rows = [[showcase.picture(name, arrays[name]) for name in names] for arrays in outputs]
    labels = label_set(showcase.pipe)
    assert labels is not None
    consistency = ConsistencyMetrics(showcase.pipe.modalities["depth"].settings["space"], labels)
    right = []
    for index, arrays in zip(ids, outputs, strict=True):
        consistency.update_geometry(arrays["depth"], arrays["normal"])
        right.append(labels.majority_object(arrays["segmentation"]) == labels.id_of(showcase.pipe.id2label[index]))
    measured = {
        "generation": {
            "category_accuracy": sum(right) / len(right),
            "consistency": {"depth_normal_angle": consistency.compute()["depth_normal_angle"]},
        }
    }
    return labelled_grid(rows, [showcase.pipe.id2label[i] for i in ids], names), measured, len(ids)


def show_understand(showcase: Showcase, scenes: Sequence[GroundTruth]) -> Part:
    """RGB -> depth, normals, segmentation: truth beside prediction, and the same errors with the next image's result."""
    outputs = _understand(showcase, [scene.maps["rgb"] for scene in scenes])
    measured = measure(showcase, outputs, scenes)
    wrong = measure(showcase, [*outputs[1:], *outputs[:1]], scenes)
    rows, captions = [], []
    for arrays, scene in zip(outputs, scenes, strict=True):
        own = measure(showcase, [arrays], [scene])
        row, caption = [scene.maps["rgb"]], ["input"]
        for name, text in (
            ("depth", f"AbsRel {own['depth']['abs_rel']:.3f}"),
            ("normal", f"{own['normal']['mean_angle']:.1f}° obj {own['normal']['mean_angle_objects']:.0f}°"),
            ("segmentation", f"object IoU {own['segmentation']['object_iou']:.2f}"),
        ):
            row += [_true_picture(showcase, name, scene), showcase.picture(name, arrays[name])]
            caption += ["truth", text]
        rows.append(row)
        captions.append(caption)
    columns = ["rgb", "depth", "depth", "normal", "normal", "segmentation", "segmentation"]
    picture = labelled_grid(rows, [scene.category or scene.id for scene in scenes], columns, captions)
    return picture, {"understanding": measured, "controls": {"shuffled_understanding": wrong}}, len(scenes)


def _understand(showcase: Showcase, images: Sequence[np.ndarray]) -> list[Arrays]:
    outputs = showcase.tasks.understand(images, range(len(images)))
    return [{**arrays, "rgb": image} for arrays, image in zip(outputs, images, strict=True)]


def show_condition(showcase: Showcase, scenes: Sequence[GroundTruth]) -> Part:
    """Depth -> the rest, and the depth that the model sees in the RGB it made, against the given one."""
    given = "depth"
    chosen = scenes[:NUM_CONDITIONED]
    numbered = [replace(scene, index=number) for number, scene in enumerate(chosen)]
    outputs = showcase.tasks.condition(given, numbered)
    again = _understand(showcase, [arrays["rgb"] for arrays in outputs])
    space = showcase.pipe.modalities["depth"].settings["space"]
    total = DepthMetrics(space, showcase.depth_range)
    rows, captions = [], []
    for arrays, estimate, scene in zip(outputs, again, chosen, strict=True):
        own = DepthMetrics(space, showcase.depth_range)
        for metric in (own, total):
            metric.update(estimate["depth"], scene.maps["depth"])
        rest = [name for name in showcase.pipe.modalities if name != given]
        rows.append(
            [
                _true_picture(showcase, "depth", scene),
                *(showcase.picture(name, arrays[name]) for name in rest),
                showcase.picture("depth", estimate["depth"]),
            ]
        )
        captions.append(["input", *["generated"] * len(rest), f"AbsRel {own.compute()['abs_rel']:.3f}"])
    columns = ["depth", *rest, "depth of that rgb"]
    picture = labelled_grid(rows, [scene.category or scene.id for scene in chosen], columns, captions)
    return picture, {"conditioning": {"depth": {"abs_rel": total.compute()["abs_rel"]}}}, len(chosen)


def _true_picture(showcase: Showcase, name: str, scene: GroundTruth) -> np.ndarray:
    return showcase.pipe.codecs[name].truth_picture(scene.maps[name])


def measure(
    showcase: Showcase, outputs: Sequence[Arrays], scenes: Sequence[GroundTruth]
) -> dict[str, dict[str, float]]:
    """Errors of depth, normals and segmentation against the scenes; the numbers of ``mmdit evaluate``."""
    metrics = map_metrics(showcase.pipe, showcase.depth_range)
    for arrays, scene in zip(outputs, scenes, strict=True):
        metrics.update(arrays, scene)
    return metrics.compute()
