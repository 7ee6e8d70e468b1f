"""Measures of a network in training: the same held-out scenes and noise for every point of every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.cli.common.model import BUNDLED_MODEL
from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.metrics.prompts.cases import PromptedSplit
    from mmdit.metrics.prompts.instrument import Instrument
    from mmdit.metrics.samples import EvaluationSamples

SEED = 0  # of the choice of scenes and of all noise


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
        num_prompts: int,
        detector: str | None,
    ) -> None:
        from mmdit.pipelines.loading import bundled_models

        bundled = bundled_models().get(BUNDLED_MODEL, Path()) / "teacher"
        self.teacher = str(bundled) if teacher is None and bundled.is_dir() else teacher
        self.scenes, self.split, self.num_measured = scenes, split, num_measured
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.batch_size, self.num_prompts, self.detector = batch_size, num_prompts, detector
        self._networks: dict[Any, Any] = {}  # of features, by a model's grid of tokens
        self.settings = {
            "scenes": str(scenes),
            "split": split,
            "num_measured": num_measured,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "teacher": teacher or BUNDLED_MODEL,
            "seed": SEED,
            "num_prompts": num_prompts,
            "detector": detector,
        }

    @property
    def columns(self) -> list[str]:
        """Names of what is measured."""
        from mmdit.metrics.learning_curves import curve_columns
        from mmdit.metrics.tasks import PROMPTS

        return [name for name in curve_columns() if self.num_prompts or not name.startswith(f"{PROMPTS}.")]

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

    def network(self, transformer: Any) -> Any:
        """The feature network for a transformer's grid of tokens, None = there is none. Raises UserError as ``load_teacher``."""
        from mmdit.encoders.features import load_teacher

        if self.teacher is None:
            return None
        height, width = (side // transformer.config.patch_size for side in transformer.latent_shape)
        if (height, width) not in self._networks:
            self._networks[height, width] = load_teacher(self.teacher, (height, width))
        return self._networks[height, width]

    def check(self) -> None:
        """Read what networks are measured on. Raises UserError for a dataset that can't be, or without what prompts need."""
        self.samples()
        if self.num_prompts:
            self._prompts(None)

    def _prompts(self, pipe: Any | None) -> tuple[PromptedSplit, Instrument]:
        """Captions and true pictures of the whole split, as a model takes them, and what judges."""
        from mmdit.cli.common.judged import judged_split

        try:
            return judged_split(pipe, self.scenes, self.split, SEED, self.detector)
        except UserError as error:
            raise UserError(f"--num_prompts is {self.num_prompts}: {error}") from error

    def _measure_prompts(self, pipe: Any) -> dict[str, float]:
        from mmdit.metrics.learning_curves import PROMPT_KINDS
        from mmdit.metrics.prompts.evaluation import PromptEvaluation, takes_prompts
        from mmdit.metrics.prompts.kinds import KINDS
        from mmdit.metrics.tasks import PROMPTS, TaskRunner

        if not takes_prompts(pipe):
            return {}
        evaluation = PromptEvaluation(
            TaskRunner(
                pipe,
                self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                internal_guidance_scale=pipe.defaults.internal_guidance(prompt=True),
                seed=SEED,
            ),
            *self._prompts(pipe),
            count=self.num_prompts,
            batch_size=self.batch_size,
            kinds={kind: KINDS[kind] for kind in PROMPT_KINDS},
            progress=False,
        )
        return {
            f"{PROMPTS}.{kind}.{metric}": mean.mean
            for kind, table in evaluation.made().items()
            for metric, mean in table.means.items()
        }

    def measure(self, folder: Path, tasks: Sequence[str], device: Any) -> dict[str, float]:
        """All measures of a pipeline folder, by column of a learning curve."""
        from mmdit.flow.schedulers import make_scheduler, shift_of
        from mmdit.metrics.report import depth_range
        from mmdit.metrics.sweep import Row, StepSweep
        from mmdit.metrics.tasks import PROMPTS
        from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

        pipe = MultimodalDiTPipeline.from_pretrained(folder).to(device)
        pipe.set_progress_bar_config(disable=True)
        samples = self.samples(pipe.modalities, pipe.native_shape)
        network = self.network(pipe.transformer)
        sweep = StepSweep(
            pipe,
            samples,
            network=None if network is None else network.to(device),
            guidance_scale=self.guidance_scale,
            internal_guidance_scale=pipe.defaults.internal_guidance(prompt=False),  # a variant's own
            condition="depth",
            seed=SEED,
            batch_size=self.batch_size,
            span=depth_range(samples.info.depth_scale),
        )
        values: dict[str, float] = {}
        for task in (task for task in tasks if task != PROMPTS):
            steps = 1 if task == "understanding" else self.num_inference_steps
            measured = sweep.measure(Row(steps, task, "euler"), make_scheduler("euler", shift_of(pipe.scheduler)))
            values |= {f"{task}_{name}": float(value) for name, value in measured.items()}
        if self.num_prompts and PROMPTS in tasks:
            values |= self._measure_prompts(pipe)
        known = set(self.columns)
        return {name: value for name, value in values.items() if name in known}
