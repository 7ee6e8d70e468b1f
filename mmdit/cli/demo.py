"""``mmdit demo``: the three uses of the bundled model as three pictures, with errors measured against ground truth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdit.bounds import InferenceSteps, NonNegativeNumber, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName, check_seed
from mmdit.errors import UserError

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "scenes64_examples"


def demo(
    output: Path = Path("outputs/demo"),
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    data: Path = EXAMPLES,
    num_inference_steps: InferenceSteps | None = None,
    guidance_scale: NonNegativeNumber | None = None,
    seed: Seed = 0,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Show what the bundled model does: generate, understand, condition.

    Writes generate.png (a category in, all modalities out), understand.png (RGB in; predictions beside the ground truth of
    rendered scenes that no model was trained on), condition.png (depth in, the rest out) and report.json (the measured
    errors, also printed), replacing those of an earlier run. A model that takes prompts adds prompt.png: words, and objects
    cut out of pictures, in other scenes.

    Args:
        output: Folder of the pictures and the report.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        data: Dataset folder with ground truth and a split named test, by default the scenes that come with the package.
        num_inference_steps: Denoising steps, null = the model's own (25 where it names none), which may be others on prompts;
            understanding takes one.
        guidance_scale: How strongly the category is followed; 1 = no guidance; null = the model's own, 2 where it names none.
        seed: Seed of the noise.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    check_seed(seed, 1000)
    from mmdit.cli.common.output import prepare_folder, write_image
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    prepare_folder(output, 10_000_000)
    import torch

    from mmdit.cli.common.model import load_pipeline, lora_settings
    from mmdit.cli.common.showcase import NEEDED, Showcase, load_scenes, show_condition, show_generate, show_understand
    from mmdit.cli.common.showcase_prompts import reads_prompts, show_prompts
    from mmdit.metrics.tasks import PROMPTS, TaskRunner

    pipe = load_pipeline(model, device, dtype, lora=lora, lora_scale=lora_scale)
    pipe.set_progress_bar_config(leave=False)
    if missing := NEEDED - pipe.modalities.keys():
        raise UserError(f"--model {model!r} has no {', '.join(sorted(missing))}, which the demo shows")
    scenes, span = load_scenes(pipe, data)
    tasks = TaskRunner(
        pipe,
        num_inference_steps and dict.fromkeys(("conditioning", "generation", PROMPTS), num_inference_steps),
        guidance_scale=guidance_scale,
        noise=lambda task, indices: [torch.Generator().manual_seed(seed + index) for index in indices],
    )
    showcase = Showcase(tasks, span)

    report: dict[str, Any] = {}
    timing: dict[str, float] = {}
    parts = {"generate": show_generate, "understand": show_understand, "condition": show_condition}
    if reads_prompts(pipe):
        parts["prompt"] = show_prompts
    else:
        (output / "prompt.png").unlink(missing_ok=True)  # an earlier run's, of another model
    for name, part in parts.items():
        start = time.perf_counter()
        picture, measured, count = part(showcase, scenes)
        timing[name] = (time.perf_counter() - start) / count
        write_image(output / f"{name}.png", picture)
        print(f"{output / f'{name}.png'}", flush=True)
        merge(report, measured)
    (scale, internal), (on_prompts, internal_on_prompts) = tasks.guidance["generation"], tasks.guidance[PROMPTS]
    report["settings"] = {
        "model": model,
        **lora_settings(lora, lora_scale),
        "num_scenes": len(scenes),
        "num_inference_steps": tasks.steps["generation"],
        "guidance_scale": scale,
        "internal_guidance_scale": internal,
        "prompt_num_inference_steps": tasks.steps[PROMPTS],
        "prompt_guidance_scale": on_prompts,
        "prompt_internal_guidance_scale": internal_on_prompts,
        "seed": seed,
        "device": str(pipe.device),
        "versions": versions(),
    }
    report["timing"] = {"seconds_per_image": timing}
    write_json(output / "report.json", report)
    print(output / "report.json")
    _print_table(report)


def merge(report: dict[str, Any], measured: Mapping[str, Any]) -> None:
    """Add numbers to a report; sections that both have are merged."""
    for name, value in measured.items():
        if isinstance(value, Mapping) and isinstance(report.get(name), dict):
            merge(report[name], value)
        else:
            report[name] = value


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
    if "prompts" in report:
        for kind, words in (("one", "one object: all right"), ("two", "two objects: all right")):
            own, other = (
                part["text"][kind]["all"] for part in (report["prompts"], report["controls"]["shuffled_prompts"])
            )
            table.add_row("text -> all" if kind == "one" else "", words, f"{own:.0%}", f"{other:.0%}")
    Console().print(table)
