"""Prompts of a split of photographs, one pass over its images: resumable at any image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmdit.data.entity_counts import ENTITY_SHARES, share_of
from mmdit.data.lines import Rules
from mmdit.data.manifest import read_dataset_info, read_manifest
from mmdit.data.prompts import PROMPTS, parse_prompts
from mmdit.data.prompts_writer import PromptsWriter, entity_values, prompt_line
from mmdit.errors import UserError, one_line
from mmdit.modalities import IMAGE
from mmdit.sources.labelling.images import LoadedImage, SourceImage
from mmdit.sources.passes import MACHINE_ERRORS, BadImage, ImagePass, make_trainer, run_pass
from mmdit.sources.prompts.captions import NONE, Captions, GivenCaptions, keep_given
from mmdit.sources.prompts.description import describe, record_written, refuse_edited, save_description
from mmdit.sources.prompts.pipeline import Described, PromptPipeline
from mmdit.sources.records import SourceRecords
from mmdit.storage.lock import FolderLock

PART = "prompt"
RECORDS = "prompt_sources"
MASKS = "mask"
DROPPED = "dropped"


@dataclass(frozen=True)
class PromptsReport:
    """What ``make_prompts`` did; processes other than the first get None instead.

    Args:
        path: of the split.
        counts: images with 0, 1, 2, 3 and with 4 or more entities.
        dropped: images that a filter left out, by its reason.
        bad: images that can't be used.
    """

    path: Path
    counts: tuple[int, ...]
    dropped: dict[str, int]
    bad: tuple[BadImage, ...]

    @property
    def num_samples(self) -> int:
        """Lines of prompts.jsonl."""
        return sum(self.counts)


class PromptsPass(ImagePass):
    """Describe what is not described yet.

    Args:
        images: all images of the split.
        pipeline: describes them.
        rules: the dataset and the split.
        captions: where captions come from, as ``GivenCaptions`` takes it.
        batch_size, num_workers: as ``ImagePass`` has them.
    """

    def __init__(
        self,
        images: Sequence[SourceImage],
        pipeline: PromptPipeline,
        rules: Rules,
        captions: str | None,
        *,
        batch_size: int,
        num_workers: int,
    ) -> None:
        networks = pipeline.networks.values()
        super().__init__("describe", images, networks, size=None, batch_size=batch_size, num_workers=num_workers)
        self.pipeline, self.rules, self.where = pipeline, rules, captions
        self.writer = PromptsWriter(rules.root / rules.split)
        self.captions: dict[str, Captions] = {}
        self.records: SourceRecords | None = None

    def missing(self, rank: int) -> list[SourceImage]:
        """Return the images that are not described yet, or whose file or caption was changed since."""
        self.records = SourceRecords(self.writer.folder, rank, RECORDS)
        given = GivenCaptions(self.rules, {image.id for image in self.images}, self.where)
        there, todo, with_caption = self.writer.existing(), [], 0
        for image in self.images:
            captions, stem = given.of(image), self.writer.stem(image.id)
            made = self.writer.path(image.id)
            with_caption += bool(captions.note)
            if stem not in there or not self.records.is_current(image.id, image.path, made, captions.note):
                todo.append(image)
                self.captions[image.id] = captions
        if not with_caption and self.pipeline.captioner is None:
            raise UserError(
                f"none of the {len(self.images)} images has a caption: write them into {PROMPTS} or into text files beside "
                "the images, give a folder of text files as --captions, or name a --captioner"
            )
        return todo

    def make(self, images: list[LoadedImage]) -> None:
        """Describe a batch; where that fails, its images one by one, so that one can't take others with it."""
        usable = []
        for image in images:
            if problem := self.captions[image.source.id].problem:
                self._refuse(image, problem)
            else:
                usable.append(image)
        if not usable:
            return
        try:
            found = self.pipeline.describe(usable, [self.captions[image.source.id].texts for image in usable])
        except (*MACHINE_ERRORS, UserError):
            raise
        except Exception as error:
            if len(usable) == 1:
                self._refuse(usable[0], one_line(error, 200))
            else:
                for image in usable:
                    self.make([image])
            return
        for image, described in zip(usable, found, strict=True):
            if described.problem:
                self._refuse(image, described.problem)
            else:
                self._save(image, described)
                self.advance(1)

    def _refuse(self, image: LoadedImage, reason: str) -> None:
        self.bad.append(BadImage(image.source.path, PART, reason))
        self.advance(1)

    def _save(self, image: LoadedImage, described: Described) -> None:
        assert image.state is not None
        assert self.records is not None
        writer, sample_id, entities = self.writer, image.source.id, []
        for number, entity in enumerate(described.entities):
            mask = None
            if entity.mask is not None:
                mask = writer.save_picture(MASKS, sample_id, number, Image.fromarray(entity.mask))
            picture = writer.save_picture(self.pipeline.picture_folder, sample_id, number, entity.picture)
            entities.append(entity_values(entity.phrase, entity.spans, entity.box, mask, [picture]))
        for kind in (MASKS, self.pipeline.picture_folder):
            writer.remove_pictures(kind, sample_id, len(entities))
        # The line comes after what it names, the record after the line.
        if described.dropped:
            writer.save_values({"id": sample_id, DROPPED: described.dropped})
        else:
            writer.save(sample_id, described.captions, entities)
        self.records.add(sample_id, image.state, self.captions[sample_id].note)


def make_prompts(
    data: str | Path,
    split: str,
    pipeline: PromptPipeline,
    *,
    captions: str | None = None,
    allow_outside: bool = False,
    batch_size: int = 8,
    num_workers: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
) -> PromptsReport | None:
    """Write prompts.jsonl of a split; call it again to go on where it stopped.

    With several devices or nodes every process runs the same command; they share the dataset's file system.

    Args:
        data: dataset folder.
        split: in it.
        pipeline: describes images.
        captions: where captions come from, as ``GivenCaptions`` takes it.
        allow_outside: accept a manifest that names files outside the folder.
        batch_size: images that are read and described at a time; what is found in one depends on the others by rounding
            alone.
        num_workers: loader processes per process.
        accelerator, devices, num_nodes: as Lightning's.

    Returns:
        What was done, on the first process; None on the others.

    Raises:
        UserError: a dataset or split that isn't there or is damaged, without an RGB image, with prompts that were made
            otherwise or edited, or that another process writes into; no image that passes the filters.
    """
    info = read_dataset_info(data, allow_outside=allow_outside)
    samples = read_manifest(info, split)
    images = [SourceImage(sample.id, str(path), None) for sample in samples if (path := sample.files.get(IMAGE))]
    if not images:
        raise UserError(f"{info.root / split}: no sample has an {IMAGE} image: prompts are made of these")
    if captions == NONE and pipeline.captioner is None:
        raise UserError("--captions none leaves every image without a caption: name a --captioner")
    rules = Rules(info.root, split, info.modalities, info.categories, allow_outside)
    module = PromptsPass(images, pipeline, rules, captions, batch_size=batch_size, num_workers=num_workers)
    trainer = make_trainer(accelerator, devices, num_nodes)
    with FolderLock(info.root, "mmdit data prompts") if trainer.is_global_zero else nullcontext():
        values, there = describe(info.root, split, pipeline, captions)
        if trainer.is_global_zero:
            # Before the first image: no other models can be mixed in, and what the user wrote has its other name.
            if there:
                refuse_edited(info.root, split, values, partial(_digest, module))
            else:
                _refuse_entities(rules)
            keep_given(module.writer.folder, there)
            save_description(info.root, values)
        bad = run_pass(trainer, module)
        if not trainer.is_global_zero:
            return None
        report = _join(module, bad)
        if report.num_samples:
            record_written(info.root, split, values)
    if not report.num_samples and report.dropped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in report.dropped.items())
        raise UserError(f"{report.path}: every image was left out ({reasons}): lower what the filters ask for")
    return report


def _refuse_entities(rules: Rules) -> None:
    """The user's captions are taken over; entities that somebody else made would be lost from prompts.jsonl."""
    path = rules.root / rules.split / PROMPTS
    if not path.is_file():
        return
    for sample, problems in parse_prompts(rules):
        if problems:
            raise problems[0].error(rules.root)
        if sample is not None and sample.entities:
            raise UserError(
                f"{path}: has entities of another source (sample {sample.id!r}): move the file away, or leave "
                "captions alone in it"
            )


def _lines(module: PromptsPass, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    for values in module.writer.stored(image.id for image in module.images):
        if DROPPED in values:
            dropped[values[DROPPED]] += 1
        else:
            yield values


def _digest(module: PromptsPass) -> str:
    digest = hashlib.sha256()
    for values in _lines(module, Counter()):
        digest.update(prompt_line(values))
    return digest.hexdigest()


def _join(module: PromptsPass, bad: tuple[BadImage, ...]) -> PromptsReport:
    counts, dropped = [0] * len(ENTITY_SHARES), Counter[str]()

    def counted() -> Iterator[dict[str, Any]]:
        for values in _lines(module, dropped):
            counts[share_of(len(values["entities"]))] += 1
            yield values

    module.writer.write(counted())
    assert module.records is not None
    module.records.join(image.id for image in module.images)
    return PromptsReport(module.writer.folder, tuple(counts), dict(dropped), bad)
