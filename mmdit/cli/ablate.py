"""``mmdit ablate``: variants of a training recipe, trained and measured alike."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmdit.bounds import MAX_SEED, Batch, InferenceSteps, NonNegativeInt, NonNegativeNumber, PositiveInt
from mmdit.cli.common.ablation_measuring import Measuring
from mmdit.cli.common.ablation_plan import Plan, plan_all, with_context
from mmdit.cli.common.ablation_results import SETTINGS, TABLE, AblationResults
from mmdit.cli.common.ablation_table import read_table
from mmdit.cli.common.model import note
from mmdit.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from mmdit.cli.common.ablation_table import Variant
    from mmdit.training.config import TrainingConfig
    from mmdit.training.measured_points import TrainingCost
    from mmdit.training.run import Run

RUNS, POINT = "runs", "point"


def ablate(
    table: Path,
    data: Path,
    scenes: Path,
    output: Path,
    split: str = "test",
    variants: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    samples: PositiveInt | None = None,
    num_measured: PositiveInt = 128,
    num_inference_steps: InferenceSteps = 10,
    guidance_scale: NonNegativeNumber = 2.0,
    batch_size: Batch = 32,
    teacher: str | None = None,
    num_prompts: NonNegativeInt = 0,
    detector: str | None = None,
) -> None:
    """Train variants of a recipe on equal samples, and measure their learning curves.

    Each variant of the table is trained with each seed as mmdit train would train it, and measured on held-out scenes after equal
    numbers of samples: understanding in one step, depth to RGB, and generation from categories. Writes OUTPUT/ablation.csv (a
    line per variant, seed and point, whole after each of them), ablation.json (what made it), what ablation-figures draws of it,
    and OUTPUT/runs/VARIANT_sSEED/pipeline. The same command again goes on where it was stopped, and trains nothing twice; with
    other variants or seeds it adds theirs. SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C end it after the step under way, with a
    checkpoint.

    Args:
        table: YAML file of variants, such as configs/ablations/scenes64.yaml.
        data: Folder of latents made by mmdit data encode.
        scenes: Dataset folder with scenes that were not trained on.
        output: Folder of the results.
        split: Split of the held-out scenes.
        variants: Names of the table; by default all.
        seeds: Of training, one run each; by default 0.
        samples: That a run sees; by default the table's.
        num_measured: Held-out scenes that each point is measured on; a split with fewer is used whole.
        num_inference_steps: Denoising steps of depth to RGB and of generation.
        guidance_scale: On the category, in generation, and on prompts; 1 = no guidance.
        batch_size: Scenes at a time when measuring; the numbers do not depend on it.
        teacher: Feature network for the Fréchet distance: a folder or a timm model; by default the bundled model's.
        num_prompts: Prompts of each of four kinds that a network which takes prompts is measured on: one object, two, one
            subject, two; 0 = none.
        detector: Folder of the detector that judges prompts; by default a bundled one.
    """
    for option, path, what in (
        ("data", data, "give latents made by 'mmdit data encode'"),
        ("scenes", scenes, "give a dataset, the folder that holds dataset.json"),
    ):
        if not path.is_dir():
            raise UserError(f"--{option} {path}: no such folder; {what}")
    if detector is not None and not num_prompts:
        raise UserError(
            f"--detector {detector}: judges prompts, and --num_prompts is 0: give a number, or leave it out"
        )
    chosen_seeds = (0,) if seeds is None else tuple(dict.fromkeys(seeds))
    for seed in chosen_seeds:
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"--seeds is {seed}: give whole numbers from 0 to {MAX_SEED}")
    described = read_table(table)
    for name in variants or ():
        if name not in described.variants:
            raise UserError(f"--variants: {unknown_name('variant', name, described.variants)}")

    from mmdit.cli.ablation_figures import draw
    from mmdit.cli.common.charts import figure_class
    from mmdit.cli.common.model import quiet_libraries
    from mmdit.metrics.tasks import PROMPTS
    from mmdit.storage.lock import FolderLock
    from mmdit.storage.versions import versions
    from mmdit.training.signals import leaving_quietly

    figure_class()  # found out now, not after the last run
    quiet_libraries()
    length = samples or described.samples
    chosen = [name for name in described.variants if variants is None or name in variants]
    if not num_prompts and (names := [name for name in chosen if described.variants[name].tasks == [PROMPTS]]):
        raise UserError(f"--num_prompts is 0, and variant {names[0]!r} is measured on prompts alone: give a number")
    earlier = described.earlier(chosen)
    plans = plan_all(described, [*earlier, *chosen], output, data, length)
    sampling = (num_inference_steps, guidance_scale, batch_size)
    measuring = Measuring(scenes, split, num_measured, *sampling, teacher, num_prompts, detector)
    with leaving_quietly(), FolderLock(output, "mmdit ablate"):
        for name in chosen:  # what can't be trained is found out now, not after hours
            if (after := described.variants[name].after) is not None:
                with_context(described, name, partial(plans[name].refuse_other_model, plans[after]))
            with_context(described, name, partial(check_run, plans[name].of(chosen_seeds[0]), measuring))
        measuring.check()
        options = {name: each.options for name, each in plans.items()}
        results = AblationResults(
            output, measuring.settings, options, described.variants, measuring.columns, versions()
        )
        for seed in chosen_seeds:
            for name in chosen:
                if described.variants[name].after not in chosen:
                    Before.of(described.variants[name], seed, output, results)
        for seed in chosen_seeds:
            for name in chosen:
                if not train_one(plans[name], seed, output, results, measuring):
                    return
        for path in (output / TABLE, output / SETTINGS, *draw([output / TABLE], output)):
            print(path)


def check_run(config: TrainingConfig, measuring: Measuring) -> None:
    """Build all that a run and its measures begin with. Raises UserError for what can't be trained or measured."""
    from mmdit.training.recipes import build_run

    module = build_run(config).module
    module.configure_optimizers()
    measuring.network(module.network)


@dataclass(frozen=True)
class Before:
    """What was spent on a run's model before the run.

    Args:
        pipeline: folder of the model that it begins with; None = what its options say.
    """

    pipeline: Path | None = None
    samples: int = 0
    processor_seconds: float = 0.0
    wall_seconds: float = 0.0

    @classmethod
    def of(cls, variant: Variant, seed: int, output: Path, results: AblationResults) -> Before:
        """Raises UserError where the variant that this one comes after has no model of that seed."""
        if variant.after is None:
            return cls()
        pipeline = run_folder(output, variant.after, seed) / "pipeline"
        last = results.last(variant.after, seed)
        if last is None or not pipeline.is_dir():
            raise UserError(
                f"variant {variant.name!r} comes after {variant.after!r}, which is not trained with seed {seed}: give --variants "
                f"{variant.after} {variant.name}"
            )
        return cls(pipeline, last["samples"], last["processor_seconds"], last["wall_seconds"])


def run_folder(output: Path, variant: str, seed: int) -> Path:
    """Where a variant is trained with a seed."""
    return output / RUNS / f"{variant}_s{seed}"


def train_one(plan: Plan, seed: int, output: Path, results: AblationResults, measuring: Measuring) -> bool:
    """Train and measure one run, unless it is done. False: a signal stopped it, with a checkpoint."""
    from mmdit.cli.train import train_run
    from mmdit.training.measured_points import MeasuredPoints

    variant, folder = plan.variant, run_folder(output, plan.variant.name, seed)
    # Checkpoints are left where it was stopped between its last point and its export.
    is_measured = all(results.has(variant.name, seed, step) for step in plan.steps)
    if is_measured and not (folder / "checkpoints").is_dir():
        note(f"{variant.name}, seed {seed}: is measured, and kept")
        return True
    before = Before.of(variant, seed, output, results)
    note(f"{variant.name}, seed {seed}: {plan.config.trainer.max_steps} steps of {plan.samples_per_step} samples")

    def measure(run: Run, step: int, cost: TrainingCost, weights: Mapping[str, Tensor]) -> None:
        if results.has(variant.name, seed, step):
            return
        point = folder / POINT
        shutil.rmtree(point, ignore_errors=True)  # of a command that was killed while it measured
        run.export(point, weights)
        values = measuring.measure(point, variant.tasks, run.module.device)
        shutil.rmtree(point, ignore_errors=True)
        results.add(
            {
                "variant": variant.name,
                "title": variant.title,
                "seed": seed,
                "step": step,
                "max_steps": plan.config.trainer.max_steps,
                "samples": before.samples + step * plan.samples_per_step,
                "processor_seconds": before.processor_seconds + cost.processor_seconds,
                "wall_seconds": before.wall_seconds + cost.wall_seconds,
                **{name: value for name, value in values.items() if variant.counts(name)},
            }
        )

    trained = train_run(
        plan.of(seed, before.pipeline),
        folder,
        "auto",
        lambda run: [MeasuredPoints(plan.steps, partial(measure, run))],
    )
    if trained is None:
        note("stopped: the same command goes on")
        return False
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # all is measured; the weights are in pipeline/
    return True
