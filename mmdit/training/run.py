"""One training run, whatever is trained: folders, resume, Lightning trainer, export."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from mmdit.data.datamodule import ResumableDataModule
from mmdit.errors import UserError, first_line, is_out_of_memory
from mmdit.models.layers import check_kernels
from mmdit.storage.files import share_weights
from mmdit.training.callbacks import ProgressLines, StepProgressBar, Throughput
from mmdit.training.checkpoints import AtomicCheckpointIO, StepCheckpoint, check_fits, find_resume, read_checkpoint
from mmdit.training.config import EMAConfig, TrainerConfig
from mmdit.training.ema import EMA
from mmdit.training.float8 import convert_to_float8
from mmdit.training.module import SteppedModule
from mmdit.training.sharding import whole_tensors
from mmdit.training.stopping import StopGracefully
from mmdit.training.strategies import STRATEGIES


@dataclass
class Run:
    """What a recipe builds.

    Args:
        module: the Lightning module.
        data: its data.
        export: writes the trained network into a folder, given its whole weights (None = those of the module).
        export_name: name of that folder inside the run's.
        callbacks: of the recipe's own, such as previews.
    """

    module: SteppedModule
    data: ResumableDataModule
    export: Callable[..., None]
    export_name: str
    callbacks: list[Callback]


def make_trainer(
    config: TrainerConfig,
    ema: EMAConfig | None,
    output: Path | None,
    data: ResumableDataModule,
    callbacks: list[Callback],
) -> pl.Trainer:
    """Build the Lightning trainer; without ``output`` it writes nothing, for benchmarks.

    Raises UserError for devices, a precision or kernels that this machine lacks.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips and summaries say nothing about the run
    on_terminal = sys.stdout.isatty()  # where Lightning's bar is written
    progress = StepProgressBar(refresh_rate=config.log_every) if on_terminal else ProgressLines(config.log_every)
    callbacks = [*callbacks, Throughput(data.batch_size, config.log_every), progress]
    if output is not None:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
        callbacks.append(StepCheckpoint(output / "checkpoints", config.checkpoint_every))
    if ema is not None:
        callbacks.insert(0, EMA(ema.decay, ema.warmup))
    validate = config.validate_every > 0 and data.val is not None
    try:
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=STRATEGIES[config.strategy](),
            plugins=[AtomicCheckpointIO()],
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
            logger=False if output is None else TensorBoardLogger(save_dir=output, name="", version="logs"),
            enable_checkpointing=output is not None,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=on_terminal,
        )
    except (ValueError, TypeError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(f"trainer settings do not fit this machine: {first_line(error)}") from error
    check_kernels(trainer.strategy.root_device)
    return trainer


def fit(run: Run, config: TrainerConfig, ema: EMAConfig | None, output: Path, resume: str | None) -> Path | None:
    """Train to ``max_steps`` (or the time limit), then export with the averaged weights.

    Returns the exported folder in the first process, None in the others. None too where SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 ended
    the run early, with a checkpoint and nothing exported. Ctrl-C does the same and raises KeyboardInterrupt.

    Raises:
        UserError: a checkpoint that can't be gone on from, settings that don't fit this machine, or too little memory for a step.
    """
    checkpoint = find_checkpoint(run, output, resume)
    stop = StopGracefully(config.max_hours)
    follow_time(run.module, config, stop)
    trainer = make_trainer(config, ema, output, run.data, [*run.callbacks, stop])
    if checkpoint is not None:
        step = int(read_checkpoint(checkpoint)["global_step"])
        if step > config.max_steps:
            raise UserError(
                f"trainer.max_steps is {config.max_steps}, and {checkpoint} is at step {step} already: give at least {step}, or "
                "another --output"
            )
        _say(trainer, f"resuming from {checkpoint}, step {step} of {config.max_steps}")
    _say(trainer, f"{type(run.module.network).__name__}: {parameter_count(run.module.network) / 1e6:.2f} M parameters")
    prepare_network(run.module.network, config)
    with stop, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # of a run that goes on
        warnings.filterwarnings("ignore", message=".*dirpath has changed.*")  # of a folder that was copied or moved
        warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*treespec.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # a small dataset
        warnings.filterwarnings(
            "ignore", message=".*callbacks used to create the checkpoint.*"
        )  # another checkpoint_every
        # Lightning can't know that StepSampler starts where the run stopped.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        try:
            trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=True)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"data.batch_size is {run.data.batch_size}: a step needs more memory than there is ({first_line(error)}): give "
                "a smaller one, and trainer.accumulate_grad_batches for as many samples in a step"
            ) from error
    if stop.stopped_by is not None:
        name = signal.Signals(stop.stopped_by).name
        last = getattr(trainer.checkpoint_callback, "last_saved_path", "")
        _say(
            trainer,
            f"stopped by {name} at step {trainer.global_step} of {config.max_steps}: go on with --resume {last}",
        )
        if stop.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        return None
    folder = output / run.export_name
    weights = whole_tensors(run.module.network.state_dict(), keep=trainer.is_global_zero)
    if trainer.is_global_zero:
        run.export(folder, weights)
        share_weights(folder)
    trainer.strategy.barrier()
    return folder if trainer.is_global_zero else None


def follow_time(module: SteppedModule, config: TrainerConfig, stop: StopGracefully) -> None:
    """Let the learning rate decay with the time, where the configuration says so. Raises UserError where no time is given."""
    if module.optimizer_config.decay_by == "time":
        if config.max_hours is None:
            raise UserError(
                "optimizer.decay_by is 'time', and trainer.max_hours is null: give the hours, or decay_by steps"
            )
        module.clock = stop


def find_checkpoint(run: Run, output: Path, resume: str | None) -> Path | None:
    """Return what ``fit`` goes on from, None = a fresh start. Raises UserError as ``find_resume``, or for another network."""
    checkpoint = find_resume(resume, output / "checkpoints")
    if checkpoint is not None:
        check_fits(checkpoint, run.module)
    return checkpoint


def _say(trainer: pl.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def prepare_network(network: torch.nn.Module, config: TrainerConfig) -> None:
    """Turn the linear layers to float8 and compile, where the configuration says so."""
    if config.float8:
        convert_to_float8(network)
    if config.compile:
        compile_network(network)


def compile_network(network: torch.nn.Module) -> None:
    """Compile in place, block by block if the network has blocks: they are alike, so one compilation serves them all.

    Then gradients of later blocks are exchanged while earlier ones are computed, and sharded weights come block by block.
    """
    blocks: Any = getattr(network, "blocks", None)
    for part in [network] if blocks is None else blocks:
        part.compile()


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
