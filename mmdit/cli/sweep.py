"""``mmdit sweep``: steps versus quality, as a table and a chart."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName, note
from mmdit.errors import UserError
from mmdit.storage.files import write_atomically
from mmdit.storage.json_object import read_object, write_json
from mmdit.storage.requests import Request

TABLE, SETTINGS, CHART = "sweep.csv", "sweep.json", "sweep.png"
KEYS = ("task", "scheduler", "num_inference_steps")
TOLERANCE = 0.1


def sweep(
    data: Path,
    output: Path,
    split: str = "test",
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    tasks: list[str] | None = None,
    schedulers: list[str] | None = None,
    steps: list[InferenceSteps] | None = None,
    num_samples: PositiveInt | None = 64,
    guidance_scale: NonNegativeNumber | None = None,
    condition: str = "depth",
    seed: Seed = 0,
    batch_size: Batch = 32,
    teacher: str | None = None,
    device: str = "auto",
    dtype: DtypeName = "auto",
    allow_outside: bool = False,
) -> None:
    """Measure quality against the number of steps, for each sampler and task.

    Writes OUTPUT/sweep.csv (a line per task, sampler and number of steps), OUTPUT/sweep.png and OUTPUT/sweep.json (settings,
    the best line of each measure, and how one step of understanding compares with it). The table is written after each
    line, cheap ones first; the same command again goes on where it was stopped. All lines share samples and noise.
    Images that conditioning and generation make are judged by the model itself, in one step with its own sampler.

    Args:
        data: Dataset folder, the one that holds dataset.json.
        output: Folder of the results.
        split: Split of the dataset.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        tasks: Any of understanding, conditioning, generation; by default all.
        schedulers: Any of euler, heun, unipc, dpmsolver++, euler_maruyama, flow_map; by default all, flow_map where the model's
            own is that.
        steps: Numbers of denoising steps; by default 1, 2, 5, 10, 25, 50, 250.
        num_samples: Samples drawn from the split with the seed; null = all.
        guidance_scale: On the category, in generation; 1 = no guidance; by default the model's own.
        condition: The modality that conditioning is given: depth, normal or segmentation.
        seed: Of the choice of samples and of all noise.
        batch_size: Samples at a time; the numbers do not depend on it.
        teacher: Feature network for the Fréchet distance: a folder or a timm model; by default the model's own, if it has one.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        allow_outside: Accept a manifest that names files outside the dataset's folder.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give a dataset, the folder that holds dataset.json")
    from mmdit.cli.common.charts import figure_class
    from mmdit.cli.common.model import load_pipeline, lora_settings
    from mmdit.cli.common.output import prepare_folder
    from mmdit.flow.schedulers import SCHEDULERS, jumps, make_scheduler, shift_of
    from mmdit.metrics.feature_networks import find_teacher
    from mmdit.metrics.report import depth_range
    from mmdit.metrics.samples import EvaluationSamples
    from mmdit.metrics.sweep import STEPS, StepSweep, sweep_rows
    from mmdit.metrics.tasks import TASKS
    from mmdit.pipelines.denoising import check_scheduler
    from mmdit.storage.versions import versions

    own = [name for name, kind in SCHEDULERS.items() if kind.jumps]  # of models that learned them
    chosen = [name for name in SCHEDULERS if name not in own] if schedulers is None else schedulers
    named = [make_scheduler(name) for name in chosen]
    asked = TASKS if tasks is None else tasks, STEPS if steps is None else steps
    rows = sweep_rows(asked[0], chosen, asked[1])
    figure_class()  # found out now, not after the last line
    prepare_folder(output)
    pipe = load_pipeline(model, device, dtype, lora=lora, lora_scale=lora_scale)
    pipe.set_progress_bar_config(disable=True)
    guidance_scale, internal = pipe.defaults.guided(guidance_scale, None, prompt=False)
    for scheduler in named:  # found out now, not after the lines before it
        check_scheduler(scheduler, pipe.transformer)
    if schedulers is None and jumps(pipe.scheduler):
        rows = sweep_rows(asked[0], [*chosen, *own], asked[1])
    network = find_teacher(pipe, teacher)
    samples = EvaluationSamples(
        data, split, pipe.modalities, pipe.native_shape, num_samples=num_samples, seed=seed, allow_outside=allow_outside
    )
    measuring = StepSweep(
        pipe,
        samples,
        network=network,
        guidance_scale=guidance_scale,
        internal_guidance_scale=internal,
        condition=condition,
        seed=seed,
        batch_size=batch_size,
        span=depth_range(samples.info.depth_scale),
    )
    settings = {
        "model": model,
        **lora_settings(lora, lora_scale),
        "weights": pipe.weights_digest(),
        "data": str(data),
        "split": split,
        "num_samples": len(measuring.samples),
        "guidance_scale": guidance_scale,
        **({} if internal == 1 else {"internal_guidance_scale": internal}),
        "condition": condition,
        "seed": seed,
        "teacher": None if network is None else str(getattr(network, "name", type(network).__name__)),
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    shift = shift_of(pipe.scheduler)
    table = SweepTable(output, settings, versions())
    for number, row in enumerate(rows, start=1):
        if table.has(row.task, row.scheduler, row.num_inference_steps):
            continue
        values = measuring.measure(row, make_scheduler(row.scheduler, shift))
        table.add(row.task, row.scheduler, row.num_inference_steps, values)
        seconds = values["seconds_per_image"]
        print(
            f"{number}/{len(rows)} {row.task} {row.scheduler} {row.num_inference_steps}: {seconds:.3f} s an image",
            flush=True,
        )
    table.finish()
    for path in (TABLE, CHART, SETTINGS):
        print(output / path)


class SweepTable:
    """The rows on disk: read back where the settings are the same, written whole after each one.

    Raises:
        UserError: a folder with the table of other settings, or one that can't be read or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        from mmdit.metrics.sweep import columns

        self.folder, self.request, self.versions = folder, Request(settings), dict(versions)
        self.columns = columns()
        self.rows: list[dict[str, Any]] = []
        if (folder / TABLE).is_file():
            self._check_settings()
            self.rows = read_table(folder / TABLE)
            note(f"{folder / TABLE}: {len(self.rows)} lines are there and are kept")
        self._write_settings({})

    def _check_settings(self) -> None:
        found = read_object(self.folder / SETTINGS, f"it says what made {TABLE}: choose another --output")
        self.request.refuse_other(found.object("settings"), self.folder, "the sweep")

    def has(self, task: str, scheduler: str, num_inference_steps: int) -> bool:
        """Whether a row is there."""
        return any(tuple(row[key] for key in KEYS) == (task, scheduler, num_inference_steps) for row in self.rows)

    def add(self, task: str, scheduler: str, num_inference_steps: int, values: Mapping[str, float]) -> None:
        """Insert a row and write the table."""
        row = dict(zip(KEYS, (task, scheduler, num_inference_steps), strict=True))
        self.rows.append({**row, **{name: float(value) for name, value in values.items()}})
        self.rows.sort(key=lambda line: tuple(line[key] for key in KEYS))  # whatever order a resumed sweep came in
        buffer = io.StringIO()
        fields = dict.fromkeys([*KEYS, *self.columns, *(key for line in self.rows for key in line)])
        writer = csv.DictWriter(buffer, list(fields), restval="", lineterminator="\n")
        writer.writeheader()
        for line in self.rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in line.items()})
        write_atomically(self.folder / TABLE, buffer.getvalue().encode())

    def finish(self) -> None:
        """Write the chart and the summary."""
        from mmdit.cli.common.charts import sweep_chart

        rows = read_table(self.folder / TABLE)
        write_atomically(self.folder / CHART, sweep_chart(rows, f"{self.request.values['num_samples']} samples"))
        summary = summarize(rows)
        self._write_settings(summary)
        for name, entry in summary["understanding_in_one_step"].items():
            verdict = "within" if entry["within_tolerance"] else "NOT within"
            print(
                f"understanding, {name}: {entry['one_step']:.4g} in 1 step, best {entry['best']:.4g} in {entry['best_steps']} "
                f"({entry['best_scheduler']}): {verdict} {TOLERANCE:.0%}"
            )

    def _write_settings(self, summary: Mapping[str, Any]) -> None:
        write_json(self.folder / SETTINGS, {"settings": self.request.values, **summary, "versions": self.versions})


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read ``sweep.csv``: text, whole steps, numbers (NaN where it was not measurable); empty cells are left out.

    Raises:
        UserError: a file that is not such a table.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        return [
            {
                "task": line["task"],
                "scheduler": line["scheduler"],
                "num_inference_steps": int(line["num_inference_steps"]),
                **{name: float(value) for name, value in line.items() if name not in KEYS and value},
            }
            for line in lines
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a table of this command ({error}): remove it or choose another --output"
        ) from error


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best row of each task's headline measures, and how one step of understanding compares with the best.

    ``loss`` is the share by which one step is worse. One step is the plain Euler one where it was measured: every
    deterministic sampler's single step is an Euler step.
    """
    from mmdit.metrics.sweep import HEADLINES, higher_is_better
    from mmdit.metrics.tasks import TASKS

    best: dict[str, dict[str, Any]] = {}
    one_step: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        for column in HEADLINES[task]:
            found = [row for row in rows if row["task"] == task and math.isfinite(row.get(column, math.nan))]
            if not found:
                continue
            sign = -1 if higher_is_better(column) else 1
            top = min(found, key=lambda row: (sign * row[column], row["num_inference_steps"]))
            best.setdefault(task, {})[column] = {"value": top[column], **{key: top[key] for key in KEYS[1:]}}
            singles = [row for row in found if row["num_inference_steps"] == 1]
            if task != "understanding" or not singles:
                continue
            single = next((row for row in singles if row["scheduler"] == "euler"), singles[0])
            loss = sign * (single[column] - top[column]) / abs(top[column]) if top[column] else math.inf
            one_step[column] = {
                "one_step": single[column],
                "best": top[column],
                "best_scheduler": top["scheduler"],
                "best_steps": top["num_inference_steps"],
                "loss": loss,
                "within_tolerance": loss <= TOLERANCE,
            }
    return {"best": best, "understanding_in_one_step": one_step}
