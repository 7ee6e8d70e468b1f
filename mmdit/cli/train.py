"""``mmdit train``: one typed function, whose arguments are the keys of a training configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmdit.training.config import (
    AlignmentConfig,
    AutoencoderConfig,
    DataConfig,
    EMAConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    TaskConfig,
    TeacherConfig,
    TrainerConfig,
)

if TYPE_CHECKING:
    from mmdit.training.config import TrainingConfig


def train(
    output: Path,
    recipe: str = "transformer",
    seed: int = 0,
    model: ModelConfig = ModelConfig(),
    autoencoder: AutoencoderConfig = AutoencoderConfig(),
    teacher: TeacherConfig = TeacherConfig(),
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    objective: ObjectiveConfig = ObjectiveConfig(),
    alignment: AlignmentConfig | None = None,
    optimizer: OptimizerConfig = OptimizerConfig(),
    trainer: TrainerConfig = TrainerConfig(),
    ema: EMAConfig | None = EMAConfig(),
    preview: PreviewConfig = PreviewConfig(),
    resume: str | None = None,
) -> None:
    """Train a transformer, an autoencoder or a teacher.

    Writes ``checkpoints/``, ``logs/`` (TensorBoard), ``config.yaml`` and, at the end, ``pipeline/`` (or ``vae/``,
    ``teacher/``) into the run folder. ``--config`` can be given more than once: a later file overlays an earlier one.
    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end the run after the step under way, with a checkpoint.

    Args:
        output: the run folder.
        recipe: what is trained: transformer, autoencoder or teacher.
        seed: of weights, data order, roles, timesteps and noise.
        model: the transformer.
        autoencoder: the VAE, for recipe autoencoder.
        teacher: the ViT, for recipe teacher.
        data: what it is trained on.
        task: which tasks are mixed.
        objective: the flow-matching loss.
        alignment: alignment with a teacher's features; null = off.
        optimizer: AdamW or Muon, and the learning rate over time.
        trainer: steps, devices, precision.
        ema: moving average of the weights; null = off.
        preview: sample grids.
        resume: "auto" (newest checkpoint of the run folder), a checkpoint's path, or null for a fresh run.
    """
    from mmdit.training.signals import leaving_quietly

    with leaving_quietly():
        from mmdit.training.config import TrainingConfig

        config = TrainingConfig(
            recipe,
            seed,
            model,
            autoencoder,
            teacher,
            data,
            task,
            objective,
            alignment,
            optimizer,
            trainer,
            ema,
            preview,
        )
        folder = _train(config, output, resume)
    if folder is not None:
        print(folder)


def _train(config: TrainingConfig, output: Path, resume: str | None) -> Path | None:
    import torch
    import yaml

    from mmdit.storage.files import write_atomically
    from mmdit.training.recipes import build_run
    from mmdit.training.run import find_checkpoint, fit, to_plain

    torch.set_float32_matmul_precision("high")
    run = build_run(config)
    find_checkpoint(run, output, resume)  # a refused start leaves the config.yaml of the run that is there
    plain = {**to_plain(config), "output": str(output), "resume": resume}
    write_atomically(output / "config.yaml", yaml.safe_dump(plain, sort_keys=False).encode())
    return fit(run, config.trainer, config.ema, output, resume)
