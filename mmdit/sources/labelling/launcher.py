"""Labelling an image folder by Lightning's predict loop: one device or many nodes, resumable at any file."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed
from torch.utils.data import DataLoader

from mmdit.data.writer import DatasetWriter
from mmdit.errors import UserError, one_line
from mmdit.modalities import IMAGE
from mmdit.progress import Progress
from mmdit.sources.labelling.description import describe, save_description
from mmdit.sources.labelling.images import ImagesToLabel, LoadedImage, SourceImage, find_images, fit_labels
from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.records import SourceRecords
from mmdit.storage.file_state import FileState
from mmdit.storage.lock import FolderLock

# Processes meet at the end only, and the slowest of a run of days may come hours after the first.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class BadImage:
    """An image that has no label of ``modality`` (or is in no part of the dataset, where that is "rgb"), and why."""

    path: str
    modality: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: " + ("" if self.modality == IMAGE else f"no {self.modality}: ") + self.reason


@dataclass(frozen=True)
class LabelReport:
    """What ``label_images`` did; processes other than the first get None instead."""

    path: Path
    num_samples: int
    bad: tuple[BadImage, ...]


class LabellingModule(pl.LightningModule):
    """Label what is missing on disk. Files are the only output, so a run that is killed loses at most a batch.

    Args:
        images: all images of the split, the same list on every process, which takes every n-th of what is missing.
        labellers: one per modality.
        writer: of the split.
        size: of the stored images, None = their own.
        batch_size, num_workers: of the loader.
    """

    def __init__(
        self,
        images: Sequence[SourceImage],
        labellers: Sequence[Labeller],
        writer: DatasetWriter,
        *,
        size: int | None,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        # A process may find nothing left to do while others have.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.images, self.labellers, self.writer = images, {entry.modality: entry for entry in labellers}, writer
        self.size, self.batch_size, self.num_workers = size, batch_size, num_workers
        self.bad: list[BadImage] = []
        self.there: dict[str, set[str]] = {}
        self.records: SourceRecords | None = None
        self.progress: Progress | None = None

    def predict_dataloader(self) -> DataLoader:
        # Lightning waits for all processes after this: nobody writes while another still looks.
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.records = SourceRecords(self.writer.folder, rank)
        self.there = self._current()
        todo = [image for image in self.images if any(image.id not in there for there in self.there.values())]
        share = ImagesToLabel(todo[rank::world_size], self.size)
        if rank == 0:
            others = f", this process's of {world_size}" if world_size > 1 else ""
            self.progress = Progress(len(share), f"label {len(todo)}{others}", "image")
        # By keyword, as Lightning needs to build it again for prediction.
        return DataLoader(share, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list)

    def _current(self) -> dict[str, set[str]]:
        """Ids per modality whose file is there and was made from the image as it is now.

        RGB comes last: without it, or with that of another image, the labels may be of another image too.
        """
        assert self.records is not None
        there = {name: self.writer.existing(name) for name in (IMAGE, *self.labellers)}
        current = {
            image.id
            for image in self.images
            if image.id in there[IMAGE]
            and self.records.is_current(image.id, image.path, self.writer.path(IMAGE, image.id))
        }
        return {name: ids & current for name, ids in there.items()}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # arrays of different sizes, which each labeller prepares itself

    def on_predict_start(self) -> None:
        for labeller in self.labellers.values():
            labeller.to(self.device)
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler lets prediction run on. All that is on disk is whole: stop at once.
            signal.signal(signal.SIGTERM, _stop)

    def predict_step(self, batch: list[LoadedImage], batch_idx: int) -> None:
        # One image at a time: a network's last bits depend on what else is in its batch.
        for image in batch:
            if image.rgb is None or image.view is None or image.state is None:
                self.bad.append(BadImage(image.source.path, IMAGE, image.problem or "it was removed"))
            else:
                self._label(image.source, image.rgb, image.view, image.state)
            if self.progress is not None:
                self.progress.update()

    def _label(self, source: SourceImage, rgb: np.ndarray, view: np.ndarray, state: FileState) -> None:
        for name, labeller in self.labellers.items():
            if source.id in self.there[name]:
                continue
            try:
                (labels,) = labeller.label([view], [source.id])
            except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError):
                raise  # the machine's fault, not the image's
            except Exception as error:
                self.bad.append(BadImage(source.path, name, one_line(error, 200)))
                continue
            if not np.isfinite(labels).all():
                reason = f"the labeller gave NaN or infinity in {labeller.dtype}"
                self.bad.append(BadImage(source.path, name, reason))
                continue
            self.writer.save(name, source.id, fit_labels(labels, name, *rgb.shape[:2]))
        # RGB comes last: where it is, all that could be labelled has been.
        if source.id not in self.there[IMAGE]:
            assert self.records is not None
            self.writer.save(IMAGE, source.id, rgb)
            self.records.add(source.id, state)

    def teardown(self, stage: str) -> None:
        if self.progress is not None:
            self.progress.close()


def label_images(
    images: str | Path,
    output: str | Path,
    labellers: Sequence[Labeller],
    *,
    split: str = "train",
    size: int | None = None,
    licence: str = "unknown",
    batch_size: int = 8,
    num_workers: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
) -> LabelReport | None:
    """Label a folder of images as one split of a dataset; call it again to go on where it stopped.

    With several devices or nodes every process runs the same command; they share the output's file system.

    Args:
        images: folder (``mmdit.sources.labelling.images.find_images``).
        output: dataset folder; splits and modalities may be added to it one after another.
        labellers: one per modality.
        split: to write.
        size: square that images are cropped and resized to, None = their own size.
        licence: of the images.
        batch_size: images that are read at a time; labellers take them one by one, so that no file depends on it.
        num_workers: loader processes per process.
        accelerator, devices, num_nodes: as Lightning's.

    Returns:
        What was done, on the first process; None on the others.

    Raises:
        UserError: no images; an output made otherwise, among the images, or that another process writes into; an
            accelerator that isn't there.
    """
    output = Path(output)
    if output.resolve().is_relative_to(Path(images).resolve()):
        raise UserError(
            f"--output {str(output)!r} lies in --images {str(images)!r}, where its files would be taken for images to label: "
            "give a folder beside it"
        )
    found = find_images(images)
    scales = [labeller.depth_scale for labeller in labellers if labeller.depth_scale is not None]
    writer = DatasetWriter(output, split, *scales)
    categories = {image.category for image in found if image.category is not None}
    trainer = _make_trainer(accelerator, devices, num_nodes)
    with FolderLock(output, "mmdit data label") if trainer.is_global_zero else nullcontext():
        values = describe(
            output, split, images=str(images), licence=licence, categories=categories, size=size, labellers=labellers
        )
        if trainer.is_global_zero:
            save_description(output, values)  # before the first label, so that no other labeller can be mixed in
        module = LabellingModule(found, labellers, writer, size=size, batch_size=batch_size, num_workers=num_workers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            try:
                trainer.predict(module, return_predictions=False)
            except SystemExit:  # Lightning's answer to Ctrl+C
                raise KeyboardInterrupt from None
        bad = _gather(module.bad)
        if not trainer.is_global_zero:
            return None
        count = writer.write_manifest(((image.id, image.category) for image in found), values["modalities"])
        if module.records is not None:
            module.records.join(image.id for image in found)
    return LabelReport(output / split, count, tuple(sorted(bad, key=lambda entry: (entry.path, entry.modality))))


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _gather(bad: list[BadImage]) -> list[BadImage]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return bad
    parts: list[list[BadImage]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, bad)
    return [entry for part in parts for entry in part]


def _make_trainer(accelerator: str, devices: int, num_nodes: int) -> pl.Trainer:
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
