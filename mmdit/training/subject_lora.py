"""Preparing a model for one subject by LoRA: what the picture of a subject spares.

The usual way to teach a model a new subject (DreamBooth, arXiv 2208.12242, with LoRA's weights, arXiv 2106.09685) trains on a few
of its pictures with their captions. Here without pictures of the class beside them: the runs are short.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.data.excerpt import write_excerpt
from mmdit.data.manifest import DatasetInfo
from mmdit.encoders.precompute import encode_dataset
from mmdit.errors import UserError
from mmdit.training.config import (
    DataConfig,
    EMAConfig,
    LoRAConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    PromptsConfig,
    TaskConfig,
    TrainerConfig,
    TrainingConfig,
)
from mmdit.training.recipes import build_run
from mmdit.training.run import fit


@dataclass(frozen=True)
class Preparation:
    """How long and how a LoRA of one subject is trained."""

    max_steps: int = 200
    rank: int = 16
    batch_size: int = 8
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class PreparedSubject:
    """folder: of the LoRA weights; seconds: from the pictures to the weights; num_pictures: that they were trained on."""

    folder: Path
    seconds: float
    num_pictures: int


def subject_lora_config(
    model: str, prediction: str, data: Path, latents: Path, preparation: Preparation, accelerator: str = "auto"
) -> TrainingConfig:
    """The recipe of configs/scenes64_lora.yaml for captions: all modalities are generated, with the model's own encoders."""
    return TrainingConfig(
        seed=preparation.seed,
        model=ModelConfig(pretrained=model, drop_class_given_rgb=True),
        lora=LoRAConfig(rank=preparation.rank),
        prompts=PromptsConfig(path=str(data), max_subjects=0, label_share=0.0),
        data=DataConfig(path=str(latents), batch_size=preparation.batch_size, val_split=None),
        task=TaskConfig(mixture={"joint": 1.0}),
        objective=ObjectiveConfig(
            prediction=prediction,
            pure_noise_share=0.5,
            timesteps="mixed",
            timestep_settings={"uniform_share": 0.45, "mean": 0.5, "std": 1.0},
            loss_weights={"rgb": 1.0, "depth": 2.0, "normal": 1.0, "segmentation": 1.0},
        ),
        optimizer=OptimizerConfig(name="adamw", lr=preparation.learning_rate, warmup_steps=10, schedule="linear"),
        trainer=TrainerConfig(
            max_steps=preparation.max_steps,
            checkpoint_every=preparation.max_steps,
            validate_every=0,
            accelerator=accelerator,
            devices=1,
        ),
        ema=EMAConfig(decay=0.98),
        preview=PreviewConfig(num_samples=0),
    )


def prepare_subject(
    pipe: Any,
    model: str,
    info: DatasetInfo,
    split: str,
    ids: Collection[str],
    output: Path,
    preparation: Preparation,
) -> PreparedSubject:
    """Train a LoRA of some samples of a split.

    Args:
        pipe: the model, loaded.
        model: its folder, or a bundled name.
        info, split, ids: the samples that show the subject, with captions.
        output: a new folder: the excerpt, its latents, and the run with ``lora/``.
        preparation: how.

    Raises:
        UserError: training that was stopped, no peft, captions that the model's encoder can't read, or a model of other
            modalities than the data.
    """
    start = time.perf_counter()
    data, latents = output / "data", output / "latents"
    write_excerpt(info, split, ids, data)
    encode_dataset(data, latents, pipe.vae, pipe.modalities, mirrored=False, say=lambda text: None)
    accelerator = {"cuda": "gpu", "mps": "mps"}.get(pipe.device.type, "cpu")
    prediction = pipe.transformer.config.prediction
    config = subject_lora_config(model, prediction, data, latents, preparation, accelerator)
    folder = fit(build_run(config), config.trainer, config.ema, output / "run", None)
    if folder is None:  # by a signal
        raise UserError(f"{output}: training was stopped before its end: start again")
    return PreparedSubject(folder, time.perf_counter() - start, len(ids))
