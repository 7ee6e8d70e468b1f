"""Labelling an image folder, one pass over its images: resumable at any file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit.data.writer import DatasetWriter
from mmdit.errors import UserError, one_line
from mmdit.modalities import IMAGE
from mmdit.sources.labelling.description import describe, save_description
from mmdit.sources.labelling.images import LoadedImage, SourceImage, find_images, fit_labels
from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.passes import MACHINE_ERRORS, BadImage, ImagePass, make_trainer, run_pass
from mmdit.sources.records import SourceRecords
from mmdit.storage.lock import FolderLock


@dataclass(frozen=True)
class LabelReport:
    """What ``label_images`` did; processes other than the first get None instead."""

    path: Path
    num_samples: int
    bad: tuple[BadImage, ...]


class LabellingPass(ImagePass):
    """Label what is missing on disk.

    Args:
        images: all images of the split.
        labellers: one per modality.
        others: modalities of the dataset that other runs label: an image that was changed loses what they made of it.
        writer: of the split.
        size, batch_size, num_workers: as ``ImagePass`` has them.
    """

    def __init__(
        self,
        images: Sequence[SourceImage],
        labellers: Sequence[Labeller],
        others: Sequence[str],
        writer: DatasetWriter,
        *,
        size: int | tuple[int, int] | None,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__("label", images, labellers, size=size, batch_size=batch_size, num_workers=num_workers)
        self.labellers, self.writer = {entry.modality: entry for entry in labellers}, writer
        self.others = others
        self.there: dict[str, set[str]] = {}
        self.records: SourceRecords | None = None

    def missing(self, rank: int) -> list[SourceImage]:
        """Return the images that a label is missing of, or that were changed since."""
        self.records = SourceRecords(self.writer.folder, rank)
        self.there = self._current()
        return [image for image in self.images if any(image.id not in there for there in self.there.values())]

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

    def make(self, images: list[LoadedImage]) -> None:
        """Label, one image at a time: a network's last bits depend on what else is in its batch."""
        for image in images:
            self._label(image)
            self.advance(1)

    def _label(self, image: LoadedImage) -> None:
        assert image.rgb is not None
        assert image.view is not None
        source = image.source
        outdated = [] if source.id in self.there[IMAGE] else list(self.others)
        for name, labeller in self.labellers.items():
            if source.id in self.there[name]:
                continue
            try:
                (labels,) = labeller.label([image.view], [source.id])
            except MACHINE_ERRORS:
                raise
            except Exception as error:
                self.bad.append(BadImage(source.path, name, one_line(error, 200)))
                outdated.append(name)
                continue
            if not np.isfinite(labels).all():
                reason = f"the labeller gave NaN or infinity in {labeller.dtype}"
                self.bad.append(BadImage(source.path, name, reason))
                outdated.append(name)
                continue
            self.writer.save(name, source.id, fit_labels(labels, name, *image.rgb.shape[:2]))
        for name in outdated:
            self.writer.remove(name, source.id)
        # RGB comes last: where it is, all that could be labelled has been.
        if source.id not in self.there[IMAGE]:
            assert self.records is not None
            assert image.state is not None
            self.writer.save(IMAGE, source.id, image.rgb)
            self.records.add(source.id, image.state)


def label_images(
    images: str | Path,
    output: str | Path,
    labellers: Sequence[Labeller],
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
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
        size: that images are cropped and resized to, one number for a square or (height, width); None = their own.
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
    trainer = make_trainer(accelerator, devices, num_nodes)
    with FolderLock(output, "mmdit data label") if trainer.is_global_zero else nullcontext():
        values = describe(
            output, split, images=str(images), licence=licence, categories=categories, size=size, labellers=labellers
        )
        if trainer.is_global_zero:
            save_description(output, values)  # before the first label, so that no other labeller can be mixed in
        labelled = {IMAGE, *(labeller.modality for labeller in labellers)}
        others = [name for name in values["modalities"] if name not in labelled]
        module = LabellingPass(
            found, labellers, others, writer, size=size, batch_size=batch_size, num_workers=num_workers
        )
        bad = run_pass(trainer, module)
        if not trainer.is_global_zero:
            return None
        count = writer.write_manifest(((image.id, image.category) for image in found), values["modalities"])
        if module.records is not None:
            module.records.join(image.id for image in found)
    return LabelReport(output / split, count, bad)
