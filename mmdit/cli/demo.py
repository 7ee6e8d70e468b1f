"""``mmdit demo``: the three uses of the bundled model as three pictures, with errors measured against ground truth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.cli.model import BUNDLED_MODEL, DtypeName, check_sampling, check_seed
from mmdit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from mmdit.metrics.samples import GroundTruth
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    Arrays = dict[str, np.ndarray]

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "scenes64_examples"
NUM_CONDITIONED = 5
NEEDED = {"rgb", "depth", "normal", "segmentation"}


def demo(
    output: Path = Path("outputs/demo"),
    model: str = BUNDLED_MODEL,
    data: Path = EXAMPLES,
    num_inference_steps: int = 25,
    guidance_scale: float = 2.0,
    seed: int = 0,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Show what the bundled model does: generate, understand, condition.

    Writes generate.png (a category in, all modalities out), understand.png (RGB in; predictions beside the ground truth of
    rendered scenes that no model was trained on), condition.png (depth in, all else out) and report.json (the measured
    errors, also printed), replacing those of an earlier run.

    Args:
        output: Folder of the pictures and the report.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        data: Dataset folder with ground truth and a split named test, by default the scenes that come with the package.
        num_inference_steps: Denoising steps of generate and condition; understanding takes one.
        guidance_scale: How strongly the category is followed; 1 is no guidance.
        seed: Seed of the noise.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    check_seed(seed, 1000)
    check_sampling(num_inference_steps, guidance_scale)
    from mmdit.cli.output import prepare_folder, versions, write_image, write_json

    prepare_folder(output, 10_000_000)
    from mmdit.cli.model import load_pipeline

    pipe = load_pipeline(model, device, dtype)
    pipe.set_progress_bar_config(leave=False)
    if missing := NEEDED - pipe.modalities.keys():
        raise UserError(f"--model {model!r} has no {', '.join(sorted(missing))}, which the demo shows")
    scenes, span = load_scenes(pipe, data)
    steps = Steps(pipe, num_inference_steps, guidance_scale, seed, span)

    report: dict[str, Any] = {}
    timing: dict[str, float] = {}
    for name, part in (("generate", _generate), ("understand", _understand), ("condition", _condition)):
        start = time.perf_counter()
        picture, measured, count = part(steps, scenes)
        timing[name] = (time.perf_counter() - start) / count
        write_image(output / f"{name}.png", picture)
        print(f"{output / f'{name}.png'}", flush=True)
        report |= measured
    report["settings"] = {
        "model": model,
        "num_scenes": len(scenes),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "device": str(pipe.device),
        "versions": versions(),
    }
    report["timing"] = {"seconds_per_image": timing}
    write_json(output / "report.json", report)
    print(output / "report.json")
    _print_table(report)


@dataclass(frozen=True)
class Steps:
    """The model and the settings that all parts share."""

    pipe: MultimodalDiTPipeline
    num_inference_steps: int
    guidance_scale: float
    seed: int
    depth_range: tuple[float, float]

    def run(self, count: int, num_inference_steps: int, guidance_scale: float = 1.0, **inputs: Any) -> list[Arrays]:
        """``count`` samples with seeds from ``seed`` on."""
        from mmdit.cli.sampling import run_pipeline

        seeds = range(self.seed, self.seed + count)
        return run_pipeline(self.pipe, seeds, num_inference_steps, guidance_scale, **inputs)

    def picture(self, name: str, array: np.ndarray) -> np.ndarray:
        from mmdit.cli.output import colored

        return colored(name, array, self.pipe.modalities[name])


def load_scenes(pipe: MultimodalDiTPipeline, data: Path) -> tuple[list[GroundTruth], tuple[float, float]]:
    """Read a dataset's test split at the model's size, by id, and the range of its depth in metres.

    Raises:
        UserError: it lacks a modality of the model, or has other classes.
    """
    from mmdit.metrics.evaluate import depth_range
    from mmdit.metrics.maps import label_set
    from mmdit.metrics.samples import EvaluationSamples
    from mmdit.pipelines.frozen import native_size

    samples = EvaluationSamples(data, "test", pipe.modalities, native_size(pipe))
    labels = label_set(pipe)
    classes = [(entry["id"], entry["name"]) for entry in samples.info.segmentation_classes or ()]
    if labels is not None and classes != list(zip(labels.ids.tolist(), labels.names, strict=True)):
        raise UserError(f"--data {data}: its segmentation classes are not the model's")
    scenes = sorted(samples, key=lambda scene: scene.id)
    for scene in scenes:
        for name in {*pipe.modalities, *NEEDED} - scene.maps.keys():
            raise UserError(f"--data {data}: sample {scene.id} has no {name}, which the demo shows")
    return scenes, depth_range(samples.info.depth_scale)


def _generate(steps: Steps, scenes: Sequence[GroundTruth]) -> tuple[Any, dict[str, Any], int]:
    from mmdit.cli.pictures import labelled_grid
    from mmdit.metrics.consistency import ConsistencyMetrics
    from mmdit.metrics.maps import label_set

    ids = list(steps.pipe.id2label)
    outputs = steps.run(len(ids), steps.num_inference_steps, steps.guidance_scale, class_labels=ids)
    names = list(steps.pipe.modalities)
    rows = [[steps.picture(name, arrays[name]) for name in names] for arrays in outputs]
    labels = label_set(steps.pipe)
    assert labels is not None
    consistency = ConsistencyMetrics(steps.pipe.modalities["depth"].settings["space"], labels)
    right = []
    for index, arrays in zip(ids, outputs, strict=True):
        consistency.update_geometry(arrays["depth"], arrays["normal"])
        right.append(labels.majority_object(arrays["segmentation"]) == labels.id_of(steps.pipe.id2label[index]))
    measured = {
        "generation": {
            "category_accuracy": sum(right) / len(right),
            "consistency": {"depth_normal_angle": consistency.compute()["depth_normal_angle"]},
        }
    }
    return labelled_grid(rows, [steps.pipe.id2label[i] for i in ids], names), measured, len(ids)


def _understand(steps: Steps, scenes: Sequence[GroundTruth]) -> tuple[Any, dict[str, Any], int]:
    from mmdit.cli.pictures import labelled_grid

    outputs = steps.run(len(scenes), 1, conditions={"rgb": [scene.maps["rgb"] for scene in scenes]})
    measured = measure(steps, outputs, scenes)
    wrong = measure(steps, [*outputs[1:], *outputs[:1]], scenes)
    rows, captions = [], []
    for arrays, scene in zip(outputs, scenes, strict=True):
        own = measure(steps, [arrays], [scene])
        row, caption = [scene.maps["rgb"]], ["input"]
        for name, text in (
            ("depth", f"AbsRel {own['depth']['abs_rel']:.3f}"),
            ("normal", f"{own['normal']['mean_angle']:.1f}° obj {own['normal']['mean_angle_objects']:.0f}°"),
            ("segmentation", f"object IoU {own['segmentation']['object_iou']:.2f}"),
        ):
            row += [_true_picture(steps, name, scene), steps.picture(name, arrays[name])]
            caption += ["truth", text]
        rows.append(row)
        captions.append(caption)
    columns = ["rgb", "depth", "depth", "normal", "normal", "segmentation", "segmentation"]
    picture = labelled_grid(rows, [scene.category or scene.id for scene in scenes], columns, captions)
    return picture, {"understanding": measured, "controls": {"shuffled_understanding": wrong}}, len(scenes)


def _condition(steps: Steps, scenes: Sequence[GroundTruth]) -> tuple[Any, dict[str, Any], int]:
    from mmdit.cli.pictures import labelled_grid
    from mmdit.metrics.depth import DepthMetrics

    chosen = scenes[:NUM_CONDITIONED]
    conditions = {"depth": [scene.maps["depth"] for scene in chosen]}
    outputs = steps.run(len(chosen), steps.num_inference_steps, conditions=conditions)
    again = steps.run(len(chosen), 1, conditions={"rgb": [arrays["rgb"] for arrays in outputs]})
    space = steps.pipe.modalities["depth"].settings["space"]
    total = DepthMetrics(space, steps.depth_range)
    rows, captions = [], []
    for arrays, estimate, scene in zip(outputs, again, chosen, strict=True):
        own = DepthMetrics(space, steps.depth_range)
        for metric in (own, total):
            metric.update(estimate["depth"], scene.maps["depth"])
        rest = [name for name in steps.pipe.modalities if name != "depth"]
        rows.append(
            [
                _true_picture(steps, "depth", scene),
                *(steps.picture(name, arrays[name]) for name in rest),
                steps.picture("depth", estimate["depth"]),
            ]
        )
        captions.append(["input", *["generated"] * len(rest), f"AbsRel {own.compute()['abs_rel']:.3f}"])
    columns = ["depth", *rest, "depth of that rgb"]
    picture = labelled_grid(rows, [scene.category or scene.id for scene in chosen], columns, captions)
    return picture, {"conditioning": {"depth": {"abs_rel": total.compute()["abs_rel"]}}}, len(chosen)


def _true_picture(steps: Steps, name: str, scene: GroundTruth) -> np.ndarray:
    array = scene.maps[name]
    if name == "depth":  # metres -> the relative map that a perfect prediction would be
        codec = steps.pipe.codecs["depth"]
        array = codec.decode(codec.encode(array)[None])[0]
    return steps.picture(name, array)


def measure(steps: Steps, outputs: Sequence[Arrays], scenes: Sequence[GroundTruth]) -> dict[str, dict[str, float]]:
    """Errors of depth, normals and segmentation against the scenes; the numbers of ``mmdit evaluate``."""
    from mmdit.metrics.maps import map_metrics

    metrics = map_metrics(steps.pipe, steps.depth_range)
    for arrays, scene in zip(outputs, scenes, strict=True):
        metrics.update(arrays, scene)
    return metrics.compute()


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    right, wrong = report["understanding"], report["controls"]["shuffled_understanding"]
    generation = report["generation"]
    table = Table(title=f"{report['settings']['model']} on {report['settings']['num_scenes']} rendered scenes")
    for heading in ("task", "measure", "this model", "wrong image"):
        table.add_column(heading, justify="left" if heading in ("task", "measure") else "right")
    for task, measure_name, path, form in (
        ("RGB -> depth", "AbsRel", ("depth", "abs_rel"), "{:.3f}"),
        ("RGB -> normals", "mean angle", ("normal", "mean_angle"), "{:.1f}°"),
        ("", "angle on objects", ("normal", "mean_angle_objects"), "{:.1f}°"),
        ("RGB -> segmentation", "object IoU", ("segmentation", "object_iou"), "{:.3f}"),
        ("", "main object named", ("segmentation", "main_object_accuracy"), "{:.0%}"),
    ):
        values = [form.format(source[path[0]][path[1]]) for source in (right, wrong)]
        table.add_row(task, measure_name, *values)
    table.add_row("depth -> RGB", "AbsRel of its depth", f"{report['conditioning']['depth']['abs_rel']:.3f}", "")
    table.add_row("category -> all", "shows the category", f"{generation['category_accuracy']:.0%}", "")
    table.add_row("", "depth against normals", f"{generation['consistency']['depth_normal_angle']:.1f}°", "")
    Console().print(table)
