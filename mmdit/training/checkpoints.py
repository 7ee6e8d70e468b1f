"""Checkpoints of a run: found, checked and saved so that a crash at any moment leaves one that works."""

from __future__ import annotations

import logging
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from mmdit.errors import UserError, first_line
from mmdit.storage.files import atomic_file, remedy, system_error

logger = logging.getLogger(__name__)

# What a checkpoint of ours must hold; another Lightning checkpoint lacks the last.
REQUIRED_KEYS = ("state_dict", "optimizer_states", "global_step", "batches_seen")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to a temporary name beside its own, then renames: a crash or a full disk leaves the older ones.

    (Lightning's own builds the file in memory first, and its temporary file is on another disk where /tmp is.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint``. Raises UserError where the disk can't take it, naming the checkpoint that is left."""
        path = Path(path)
        try:
            with atomic_file(path, durable=True) as file:
                torch.save(checkpoint, file)
        except Exception as error:
            cause = system_error(error)
            if cause is None:
                raise
            left = max(path.parent.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, default=None)
            raise UserError(
                f"checkpoint {path} can't be written: {cause.strerror}; the newest one that is whole: {left or 'none'}. "
                f"{remedy(cause).capitalize()}, then go on with --resume auto"
            ) from error


class StepCheckpoint(ModelCheckpoint):
    """Keeps the last checkpoints by step; an older one is removed after the newer is whole.

    Args:
        folder: where they go, as ``step=<step>.ckpt``.
        every: steps between them.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, every: int, keep: int = 2) -> None:
        super().__init__(
            dirpath=folder,
            filename="{step:08d}",
            every_n_train_steps=every,
            monitor="step",
            mode="max",
            save_top_k=keep,
            save_on_train_epoch_end=False,
            auto_insert_metric_name=True,
        )
        self.last_saved_path = ""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and self.dirpath is not None:
            for unfinished in Path(self.dirpath).glob(".step=*.ckpt.tmp"):  # of a run that was killed while it wrote
                unfinished.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the gradients of half an accumulation are in no checkpoint
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # Not at on_train_end: the averaged weights have replaced the trained ones by then.
        ends = trainer.should_stop or trainer.global_step >= trainer.max_steps
        if ends and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.last_saved_path = filepath
        if trainer.is_global_zero:
            # Lightning forgets which files a run before this one left behind.
            older = sorted(
                path for path in Path(filepath).parent.glob("step=*.ckpt") if path.name < Path(filepath).name
            )
            for path in older[: len(older) - self.save_top_k + 1]:
                path.unlink(missing_ok=True)


@lru_cache(maxsize=16)
def _damaged_part(path: Path, size: int, changed: int) -> str | None:
    """Name of the first part of a checkpoint whose content is not what its checksum says: PyTorch itself never compares."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a training checkpoint without unpickling code. Raises UserError if it is damaged or no checkpoint of ours."""
    try:
        status = path.stat()
        damaged = _damaged_part(path, status.st_size, status.st_mtime_ns)
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path}: no such file") from None
    except Exception as error:
        raise UserError(f"checkpoint {path} is damaged or no training checkpoint: {first_line(error)}") from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"checkpoint {path} is no training checkpoint of mmdit: it lacks {', '.join(missing)}")
    return checkpoint


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to go on from, or None for a fresh start.

    Args:
        resume: None, "auto" (newest readable checkpoint in ``folder``, none = fresh start) or a path.
        folder: the run's checkpoints.

    Raises:
        UserError: a given checkpoint is unreadable; or a fresh start would write over an existing run.
    """
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    if resume is None:
        if found:
            raise UserError(
                f"{folder} already holds checkpoints of a run: go on with --resume auto, or choose another --output"
            )
        return None
    if resume != "auto":
        path = Path(resume)
        read_checkpoint(path)
        return path
    for path in found:
        try:
            read_checkpoint(path)
        except UserError as error:
            logger.warning("%s; falling back to the checkpoint before", error)
            continue
        return path
    if found:
        raise UserError(
            f"none of the {len(found)} checkpoints in {folder} can be read: remove them, or name one in --resume"
        )
    return None


def check_fits(path: Path, module: pl.LightningModule) -> None:
    """Raise UserError where a checkpoint is of another network than ``module``'s, or of another optimizer."""
    checkpoint = read_checkpoint(path)
    stored, own = checkpoint["state_dict"], module.state_dict()
    for name in [*own, *stored]:
        ours, theirs = (tuple(state[name].shape) if name in state else None for state in (own, stored))
        if ours != theirs:
            there, here = ("none" if shape is None else " x ".join(map(str, shape)) for shape in (theirs, ours))
            raise UserError(
                f"checkpoint {path} is of another network ({name} is {there} there, {here} in this configuration): "
                "resume with the run's own configuration, or choose another --output"
            )
    configured: Any = module.configure_optimizers()
    saved = [len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"]]
    if saved != [len(group["params"]) for group in configured["optimizer"].param_groups]:
        raise UserError(
            f"checkpoint {path} is of another optimizer: resume with the run's own optimizer.name, or choose another --output"
        )
