"""``mmdit ablate``: variants of a training recipe, trained and measured alike."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.bounds import MAX_SEED, Batch, InferenceSteps, NonNegativeNumber, PositiveInt
from mmdit.cli.common.ablation_results import SETTINGS, TABLE, AblationResults
from mmdit.cli.common.ablation_table import AblationTable, Variant, read_table
from mmdit.cli.common.model import BUNDLED_MODEL, note
from mmdit.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mmdit.metrics.samples import EvaluationSamples
    from mmdit.training.config import TrainingConfig
    from mmdit.training.measured_points import TrainingCost
    from mmdit.training.run import Run

SEED = 0  # of the choice of scenes and of all noise when measuring: the same for every point
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
        guidance_scale: On the category, in generation; 1 = no guidance.
        batch_size: Scenes at a time when measuring; the numbers do not depend on it.
        teacher: Feature network for the Fréchet distance: a folder or a timm model; by default the bundled model's.
    """
    for option, path, what in (
        ("data", data, "give latents made by 'mmdit data encode'"),
        ("scenes", scenes, "give a dataset, the folder that holds dataset.json"),
    ):
        if not path.is_dir():
            raise UserError(f"--{option} {path}: no such folder; {what}")
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
    from mmdit.metrics.learning_curves import curve_columns
    from mmdit.storage.lock import FolderLock
    from mmdit.storage.versions import versions
    from mmdit.training.recipes import build_run
    from mmdit.training.signals import leaving_quietly

    figure_class()  # found out now, not after the last run
    quiet_libraries()
    length = samples or described.samples
    plans = {name: plan(described, variant, output, data, length) for name, variant in described.variants.items()}
    chosen = [name for name in plans if variants is None or name in variants]
    measuring = Measuring(scenes, split, num_measured, num_inference_steps, guidance_scale, batch_size, teacher)
    with leaving_quietly(), FolderLock(output, "mmdit ablate"):
        for name in chosen:  # what can't be trained is found out now, not after hours
            with_context(described, name, lambda name=name: build_run(plans[name].of(chosen_seeds[0])))
        measuring.samples()
        options = {name: each.options for name, each in plans.items()}
        results = AblationResults(output, measuring.settings, options, chosen, curve_columns(), versions())
        for seed in chosen_seeds:
            for name in chosen:
                if not train_one(plans[name], seed, output, results, measuring):
                    return
        for path in (output / TABLE, output / SETTINGS, *draw([output / TABLE], output)):
            print(path)


@dataclass(frozen=True)
class Plan:
    """How a variant is trained: its configuration, and the steps after which it is measured."""

    variant: Variant
    config: TrainingConfig
    steps: tuple[int, ...]
    options: Mapping[str, Any]

    def of(self, seed: int) -> TrainingConfig:
        """The configuration of one run."""
        return replace(self.config, seed=seed)

    @property
    def samples_per_step(self) -> int:
        return self.config.data.batch_size * self.config.trainer.accumulate_grad_batches


def plan(table: AblationTable, variant: Variant, output: Path, data: Path, samples: int) -> Plan:
    """Parse a variant's options as ``mmdit train`` does. Raises UserError naming the variant for those that it refuses."""
    from mmdit.cli.common.parsing import build_parser
    from mmdit.cli.main import COMMANDS
    from mmdit.training.config import TrainingConfig

    def parse() -> TrainingConfig:
        command = COMMANDS["train"]
        parser = build_parser(command.load(), "mmdit train", command.positional, command.config)
        values = parser.instantiate(parser.parse_args(table.arguments(variant, output, data, 0)))
        return TrainingConfig(
            **{name: value for name, value in vars(values).items() if name in TrainingConfig.__annotations__}
        )

    config: TrainingConfig = with_context(table, variant.name, parse)
    if config.recipe != "transformer" or config.lora is not None:
        raise UserError(f"{table.path}: variant {variant.name!r}: an ablation is of recipe 'transformer', without lora")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        raise UserError(
            f"{table.path}: variant {variant.name!r}: trainer.devices is {config.trainer.devices}: give 1, a run is one process"
        )
    per_step = config.data.batch_size * config.trainer.accumulate_grad_batches
    max_steps = round(samples * variant.share / per_step)
    if max_steps < 1:
        raise UserError(
            f"--samples is {samples}: variant {variant.name!r} takes {per_step} a step: give at least "
            f"{round(per_step / variant.share)}"
        )
    config = replace(config, trainer=replace(config.trainer, max_steps=max_steps))
    steps = sorted({max(1, round(max_steps * point / table.points)) for point in range(1, table.points + 1)})
    return Plan(variant, config, tuple(steps), changed_options(config))


def with_context(table: AblationTable, name: str, action: Any) -> Any:
    """Run ``action``; what is refused says which variant it is about."""
    try:
        return action()
    except UserError as error:
        raise UserError(f"{table.path}: variant {name!r}: {error}") from error


def changed_options(config: TrainingConfig) -> dict[str, Any]:
    """Dotted name -> value of all options that are not at their defaults, so that a new option changes no old record.

    Without the seed, of which there are several.
    """
    from mmdit.cli.evaluate import flatten
    from mmdit.training.config import TrainingConfig
    from mmdit.training.run import to_plain

    defaults, values = (flatten(to_plain(each)) for each in (TrainingConfig(), config))
    own = {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
    return {name: value for name, value in own.items() if name != "seed"}


def train_one(plan: Plan, seed: int, output: Path, results: AblationResults, measuring: Measuring) -> bool:
    """Train and measure one run, unless all its points are there. False: a signal stopped it, with a checkpoint."""
    from mmdit.cli.train import train_run
    from mmdit.training.measured_points import MeasuredPoints

    variant, folder = plan.variant, output / RUNS / f"{plan.variant.name}_s{seed}"
    if all(results.has(variant.name, seed, step) for step in plan.steps):
        note(f"{variant.name}, seed {seed}: is measured, and kept")
        return True
    note(f"{variant.name}, seed {seed}: {plan.config.trainer.max_steps} steps of {plan.samples_per_step} samples")

    def measure(run: Run, step: int, cost: TrainingCost, weights: Mapping[str, Any]) -> None:
        if results.has(variant.name, seed, step):
            return
        point = folder / POINT
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
                "samples": step * plan.samples_per_step,
                "processor_seconds": cost.processor_seconds,
                "wall_seconds": cost.wall_seconds,
                **{name: value for name, value in values.items() if variant.counts(name)},
            }
        )

    trained = train_run(
        plan.of(seed),
        folder,
        "auto",
        lambda run: [MeasuredPoints(plan.steps, partial(measure, run))],
    )
    if trained is None:
        note("stopped: the same command goes on")
        return False
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # all is measured; the weights are in pipeline/
    return True


class Measuring:
    """Measures trained networks, all on the same scenes and noise; arguments as of the command."""

    def __init__(
        self,
        scenes: Path,
        split: str,
        num_measured: int,
        num_inference_steps: int,
        guidance_scale: float,
        batch_size: int,
        teacher: str | None,
    ) -> None:
        from mmdit.pipelines.loading import bundled_models

        bundled = bundled_models().get(BUNDLED_MODEL, Path()) / "teacher"
        self.teacher = str(bundled) if teacher is None and bundled.is_dir() else teacher
        self.scenes, self.split, self.num_measured = scenes, split, num_measured
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.batch_size = batch_size
        self.settings = {
            "scenes": str(scenes),
            "split": split,
            "num_measured": num_measured,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "teacher": teacher or BUNDLED_MODEL,
            "seed": SEED,
        }

    def samples(self, modalities: Any = None, size: Any = 64) -> EvaluationSamples:
        """The held-out scenes as a model takes them. Raises UserError for a dataset that can't be read."""
        from mmdit.metrics.samples import EvaluationSamples
        from mmdit.modalities import MODALITIES

        return EvaluationSamples(
            self.scenes,
            self.split,
            MODALITIES if modalities is None else modalities,
            size,
            num_samples=self.num_measured,
            seed=SEED,
        )

    def measure(self, folder: Path, tasks: Sequence[str], device: Any) -> dict[str, float]:
        """All measures of a pipeline folder, by column of a learning curve."""
        from mmdit.flow.schedulers import make_scheduler, shift_of
        from mmdit.metrics.feature_networks import find_teacher
        from mmdit.metrics.learning_curves import curve_columns
        from mmdit.metrics.report import depth_range
        from mmdit.metrics.sweep import Row, StepSweep
        from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

        pipe = MultimodalDiTPipeline.from_pretrained(folder).to(device)
        pipe.set_progress_bar_config(disable=True)
        samples = self.samples(pipe.modalities, pipe.native_shape)
        sweep = StepSweep(
            pipe,
            samples,
            network=find_teacher(pipe, self.teacher),
            guidance_scale=self.guidance_scale,
            condition="depth",
            seed=SEED,
            batch_size=self.batch_size,
            span=depth_range(samples.info.depth_scale),
        )
        values: dict[str, float] = {}
        for task in tasks:
            steps = 1 if task == "understanding" else self.num_inference_steps
            measured = sweep.measure(Row(steps, task, "euler"), make_scheduler("euler", shift_of(pipe.scheduler)))
            values |= {f"{task}_{name}": float(value) for name, value in measured.items()}
        known = set(curve_columns())
        return {name: value for name, value in values.items() if name in known}
