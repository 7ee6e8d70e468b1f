"""One pass over images by Lightning's predict loop: one device or many nodes, resumable at any file."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from mmdit.errors import UserError, one_line
from mmdit.launch import gathered
from mmdit.modalities import IMAGE
from mmdit.progress import Progress
from mmdit.sources.labelling.images import ImagesToLabel, LoadedImage, SourceImage
from mmdit.sources.labelling.network import FrozenNetwork

# Processes meet at the end only, and the slowest of a run of days may come hours after the first.
PATIENCE = timedelta(days=7)
# The machine's fault, not the image's: the run ends.
MACHINE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)


@dataclass(frozen=True)
class BadImage:
    """An image that lacks ``part`` (or is in no part of the dataset, where that is "rgb"), and why."""

    path: str
    part: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: " + ("" if self.part == IMAGE else f"no {self.part}: ") + self.reason


class ImagePass(pl.LightningModule):
    """Make what is missing on disk. Files are the only output, so a run that is killed loses at most a batch.

    Args:
        task: what is done, for the line of progress.
        images: all images of the split, the same list on every process, which takes every n-th of what is missing.
        networks: what ``make`` uses; they are moved to the process's device.
        size: that images are cropped and resized to, one number for a square or (height, width); None = their own.
        batch_size, num_workers: of the loader.
    """

    def __init__(
        self,
        task: str,
        images: Sequence[SourceImage],
        networks: Iterable[FrozenNetwork],
        *,
        size: int | tuple[int, int] | None,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        # A process may find nothing left to do while others have.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.task, self.images, self.networks = task, images, list(networks)
        self.size, self.batch_size, self.num_workers = size, batch_size, num_workers
        self.bad: list[BadImage] = []
        self.progress: Progress | None = None

    @abstractmethod
    def missing(self, rank: int) -> list[SourceImage]:
        """Return the images that something is missing of; no process writes before all have returned."""

    @abstractmethod
    def make(self, images: list[LoadedImage]) -> None:
        """Write what is missing of images that could be read; what can't be made goes into ``bad``."""

    def predict_dataloader(self) -> DataLoader:
        # Lightning waits for all processes after this: nobody writes while another still looks.
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        todo = self.missing(rank)
        share = ImagesToLabel(todo[rank::world_size], self.size)
        if rank == 0:
            others = f", this process's of {world_size}" if world_size > 1 else ""
            self.progress = Progress(len(share), f"{self.task} {len(todo)}{others}", "image")
        # By keyword, as Lightning needs to build it again for prediction.
        return DataLoader(share, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # arrays of different sizes, which each network prepares itself

    def on_predict_start(self) -> None:
        for network in self.networks:
            network.to(self.device)
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler lets prediction run on. All that is on disk is whole: stop at once.
            signal.signal(signal.SIGTERM, _stop)

    def predict_step(self, batch: list[LoadedImage], batch_idx: int) -> None:
        readable = []
        for image in batch:
            if image.rgb is None or image.view is None or image.state is None:
                self.bad.append(BadImage(image.source.path, IMAGE, image.problem or "it was removed"))
                self.advance(1)
            else:
                readable.append(image)
        if readable:
            self.make(readable)

    def advance(self, count: int) -> None:
        """Count images that are done."""
        if self.progress is not None:
            self.progress.update(count)

    def teardown(self, stage: str) -> None:
        if self.progress is not None:
            self.progress.close()


def run_pass(trainer: pl.Trainer, images: ImagePass) -> tuple[BadImage, ...]:
    """Run it; return the bad images of all processes, sorted, to each of them."""
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        try:
            trainer.predict(images, return_predictions=False)
        except SystemExit:  # Lightning's answer to Ctrl+C
            raise KeyboardInterrupt from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
    bad = (entry for part in gathered(images.bad) for entry in part)
    return tuple(sorted(bad, key=lambda entry: (entry.path, entry.part)))


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def make_trainer(accelerator: str, devices: int, num_nodes: int) -> pl.Trainer:
    """Lightning's trainer for a pass. Raises UserError for an accelerator or devices that aren't there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=DDPStrategy(timeout=PATIENCE) if devices * num_nodes > 1 else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        reason = one_line(error)
        raise UserError(f"accelerator {accelerator!r} with {devices} devices can't be used here: {reason}") from error
