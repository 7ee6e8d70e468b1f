"""Checkpoints of a run: found, checked and saved so that a crash at any moment leaves one that works."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from mmdit.errors import UserError, first_line
from mmdit.storage.files import atomic_file, remedy, system_error
from mmdit.storage.weights import check_archive, is_archive, refuse_irregular
from mmdit.training.meaning import check_meaning
from mmdit.training.module import SteppedModule

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
            left = next(iter(by_step(path.parent)), None)
            raise UserError(
                f"checkpoint {path} can't be written: {cause.strerror}; the newest one that is whole: {left or 'none'}. "
                f"{remedy(cause).capitalize()}, then go on with --resume auto"
            ) from error


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says; -1 for another name."""
    match = re.fullmatch(r"step=(\d+)(-v\d+)?\.ckpt", path.name)
    return int(match[1]) if match else -1


def by_step(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the furthest step first; those of other names last, the newest of them first.

    Goes by what they hold, not by when they were written: a copied or restored folder has new times.
    """
    found = [(step_of(path), path.stat().st_mtime_ns, path) for path in folder.glob("*.ckpt") if path.is_file()]
    return [path for step, time, path in sorted(found, key=lambda each: (-each[0], -each[1], each[2].name))]


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
            step = step_of(Path(filepath))
            older = [path for path in by_step(Path(filepath).parent) if -1 < step_of(path) < step]
            for path in older[self.save_top_k - 1 :]:
                path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a training checkpoint without unpickling code. Raises UserError if it is damaged or no checkpoint of ours."""
    try:
        refuse_irregular(path)
        if not is_archive(path):
            raise UserError(f"{path} is not a training checkpoint of mmdit: give a .ckpt file or a run's folder")
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError as error:
        raise UserError(f"checkpoint {error}") from None
    except Exception as error:
        raise UserError(f"checkpoint {path} is damaged or not a training checkpoint: {first_line(error)}") from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"checkpoint {path} is not a training checkpoint of mmdit: it lacks {', '.join(missing)}")
    for key, right, is_right in (
        ("state_dict", "tensors by name", _is_state_dict),
        ("optimizer_states", "a list with each optimizer's param_groups", _are_optimizer_states),
        ("global_step", "a count", _is_count),
        ("batches_seen", "a count", _is_count),
    ):
        if not is_right(checkpoint[key]):
            kind = type(checkpoint[key]).__name__
            raise UserError(f"checkpoint {path} is not a training checkpoint of mmdit: {key} is a {kind}, not {right}")
    return checkpoint


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )


def _are_optimizer_states(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_has_param_groups, value))


def _has_param_groups(state: Any) -> bool:
    groups = state.get("param_groups") if isinstance(state, dict) else None
    return isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to go on from, or None for a fresh start.

    Args:
        resume: None, "auto" (the readable checkpoint of the furthest step in ``folder``, none = fresh start), the path of a
            checkpoint, or that of a folder, a run's or one of checkpoints, which must hold one.
        folder: the run's checkpoints.

    Raises:
        UserError: a given checkpoint is unreadable; or a fresh start would write over an existing run.
    """
    if resume is None:
        if by_step(folder):
            raise UserError(
                f"{folder} already holds checkpoints of a run: go on with --resume auto, or choose another --output"
            )
        return None
    if resume == "auto":
        return _furthest_readable(folder)
    path = Path(resume)
    if not path.is_dir():
        read_checkpoint(path)
        return path
    inside = path / folder.name
    given = _furthest_readable(inside if inside.is_dir() else path)
    if given is None:
        raise UserError(f"--resume {resume}: holds no checkpoint; give a .ckpt file or a run's folder")
    return given


def _furthest_readable(folder: Path) -> Path | None:
    """The readable checkpoint of the furthest step, None = there is none at all. Raises UserError where all are unreadable."""
    found = by_step(folder)
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


def check_fits(path: Path, module: SteppedModule) -> None:
    """Raise UserError for a checkpoint of another network or optimizer than ``module``'s, or whose weights mean other things."""
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
    check_meaning(module.meaning, checkpoint, path)
