"""Measures of a network in training: the same held-out scenes and noise for every point of every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.cli.common.model import BUNDLED_MODEL

if TYPE_CHECKING:
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
    ) -> None:
        from mmdit.pipelines.loading import bundled_models

        bundled = bundled_models().get(BUNDLED_MODEL, Path()) / "teacher"
        self.teacher = str(bundled) if teacher is None and bundled.is_dir() else teacher
        self.scenes, self.split, self.num_measured = scenes, split, num_measured
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.batch_size = batch_size
        self._networks: dict[Any, Any] = {}  # of features, by a model's grid of tokens
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

    def network(self, transformer: Any) -> Any:
        """The feature network for a transformer's grid of tokens, None = there is none. Raises UserError as ``load_teacher``."""
        from mmdit.encoders.features import load_teacher

        if self.teacher is None:
            return None
        height, width = (side // transformer.config.patch_size for side in transformer.latent_shape)
        if (height, width) not in self._networks:
            self._networks[height, width] = load_teacher(self.teacher, (height, width))
        return self._networks[height, width]

    def measure(self, folder: Path, tasks: Sequence[str], device: Any) -> dict[str, float]:
        """All measures of a pipeline folder, by column of a learning curve."""
        from mmdit.flow.schedulers import make_scheduler, shift_of
        from mmdit.metrics.learning_curves import curve_columns
        from mmdit.metrics.report import depth_range
        from mmdit.metrics.sweep import Row, StepSweep
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
