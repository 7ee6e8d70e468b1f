"""``mmdit train``: one typed function, whose options are the keys of a training configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.storage.lock import FolderLock
from mmdit.training.config import TrainingConfig

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from mmdit.training.run import Run


def train(output: Path, resume: str | None = None, **sections: Any) -> None:
    """Train a transformer, or one of the networks that it learns from and is judged by.

    Writes ``checkpoints/``, ``logs/`` (TensorBoard), ``config.yaml`` and, at the end, ``pipeline/`` (or ``vae/``,
    ``teacher/``, ``clip/``, ``detector/``, ``captioner/``, ``lora/``) into the run folder. ``--config`` can be given more than
    once: a later file overlays an earlier one.
    SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C end the run after the step under way, with a checkpoint.

    Args:
        output: the run folder.
        resume: "auto" (newest checkpoint of the run folder), the path of a checkpoint or of a run's folder, or null for a fresh
            run.
        **sections: the configuration, ``TrainingConfig``.
    """
    from mmdit.cli.common.model import quiet_libraries
    from mmdit.data.writer import refuse_foreign
    from mmdit.training.processes import is_first_process
    from mmdit.training.signals import leaving_quietly

    quiet_libraries()
    refuse_foreign(output)
    # The first process of a run holds its folder; the others write nothing there by themselves.
    lock = FolderLock(output, "mmdit train") if is_first_process() else nullcontext()
    with leaving_quietly(), lock:
        folder = train_run(TrainingConfig(**sections), output, resume)
    if folder is not None:
        print(folder)


def train_run(
    config: TrainingConfig,
    output: Path,
    resume: str | None,
    watch: Callable[[Run], Sequence[Callback]] = lambda run: (),
) -> Path | None:
    """Build a run, write its ``config.yaml`` and train it; returns as ``fit``. ``watch``: a run -> more callbacks for it."""
    import torch
    import yaml

    from mmdit.storage.files import write_atomically
    from mmdit.training.processes import is_first_process
    from mmdit.training.recipes import build_run
    from mmdit.training.run import find_checkpoint, fit, to_plain

    torch.set_float32_matmul_precision("high")
    run = build_run(config)
    find_checkpoint(run, output, resume)  # a refused start leaves the config.yaml of the run that is there
    if is_first_process():
        plain = {**to_plain(config), "output": str(output), "resume": resume}
        write_atomically(output / "config.yaml", yaml.safe_dump(plain, sort_keys=False).encode())
    run.callbacks.extend(watch(run))
    return fit(run, config.trainer, config.ema, output, resume)
