"""One training run, whatever is trained: folders, resume, Lightning trainer, export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from mmdit.data.datamodule import ResumableDataModule
from mmdit.errors import UserError
from mmdit.training.callbacks import Throughput, TimeLimit
from mmdit.training.checkpoints import StepCheckpoint, find_resume, read_checkpoint
from mmdit.training.config import EMAConfig, TrainerConfig
from mmdit.training.ema import EMA
from mmdit.training.module import SteppedModule

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What a recipe builds.

    Args:
        module: the Lightning module.
        data: its data.
        export: writes the trained network into a folder.
        export_name: name of that folder inside the run's.
        callbacks: of the recipe's own, such as previews.
    """

    module: SteppedModule
    data: ResumableDataModule
    export: Callable[[Path], None]
    export_name: str
    callbacks: list[Callback]


def make_trainer(
    config: TrainerConfig, ema: EMAConfig | None, output: Path, data: ResumableDataModule, callbacks: list[Callback]
) -> pl.Trainer:
    """Build the Lightning trainer. Raises UserError for devices or a precision that this machine lacks."""
    callbacks = [
        *callbacks,
        Throughput(data.batch_size, config.log_every),
        LearningRateMonitor(logging_interval="step"),
        TQDMProgressBar(refresh_rate=config.log_every),
        StepCheckpoint(output / "checkpoints", config.checkpoint_every),
    ]
    if ema is not None:
        callbacks.insert(0, EMA(ema.decay))
    if config.max_hours is not None:
        callbacks.append(TimeLimit(config.max_hours))
    validate = config.validate_every > 0 and data.val is not None
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=config.precision,  # type: ignore[arg-type]
            max_steps=config.max_steps,
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_val,
            val_check_interval=config.validate_every * config.accumulate_grad_batches if validate else None,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if validate else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=config.log_every,
            callbacks=callbacks,
            logger=TensorBoardLogger(save_dir=output, name="", version="logs"),
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(f"trainer settings do not fit this machine: {str(error).splitlines()[0]}") from error


def fit(run: Run, config: TrainerConfig, ema: EMAConfig | None, output: Path, resume: str | None) -> Path:
    """Train to ``max_steps`` (or the time limit), then export with the averaged weights. Returns the exported folder."""
    checkpoint = find_resume(resume, output / "checkpoints")
    trainer = make_trainer(config, ema, output, run.data, run.callbacks)
    if checkpoint is not None:
        step = int(read_checkpoint(checkpoint)["global_step"])
        logger.info("resuming from %s, step %d of %d", checkpoint, step, config.max_steps)
    if config.compile:
        run.module.network.compile()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning can't know that StepSampler starts where the run stopped.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    folder = output / run.export_name
    if trainer.is_global_zero:
        run.export(folder)
    trainer.strategy.barrier()
    return folder


def parameter_count(network: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def to_plain(value: Any) -> Any:
    """Dataclasses and paths as YAML values."""
    if hasattr(value, "__dataclass_fields__"):
        return {key: to_plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
