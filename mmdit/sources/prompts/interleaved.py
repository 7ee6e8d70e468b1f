"""The pipeline of UNIMO-G (arXiv 2401.13388): a language model's entities, grounded and cut out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmdit.encoders.prompts import subject_image
from mmdit.sources.labelling.images import LoadedImage, fit_labels
from mmdit.sources.labelling.network import FrozenNetwork
from mmdit.sources.prompts.detection import Box, Grounder
from mmdit.sources.prompts.lookup import Span, find_phrases
from mmdit.sources.prompts.masks import Segmenter
from mmdit.sources.prompts.pipeline import FoundEntity, PromptPipeline, views
from mmdit.sources.prompts.settings import PromptSettings

SEGMENTATION = "segmentation"  # a mask is enlarged and made smaller as labels are


class InterleavedPipeline(PromptPipeline):
    """Caption -> entities by the language model -> boxes by Grounding DINO -> masks by SAM -> segments on white.

    Args:
        settings: how it runs.
        networks: "captioner", "grounder", "segmenter", and as ``PromptPipeline`` has them.
    """

    name: ClassVar[str] = "interleaved"
    picture_folder: ClassVar[str] = "segment"

    def __init__(self, settings: PromptSettings, networks: Mapping[str, FrozenNetwork]) -> None:
        super().__init__(settings, networks)
        grounder, segmenter = self.networks["grounder"], self.networks["segmenter"]
        assert self.captioner is not None
        self.captioner.refuse_without_chat()
        assert isinstance(grounder, Grounder)
        assert isinstance(segmenter, Segmenter)
        self.grounder, self.segmenter = grounder, segmenter

    def facts(self) -> dict[str, Any]:
        return asdict(self.settings.interleaved)

    def find(self, images: Sequence[LoadedImage], captions: Sequence[tuple[str, ...]]) -> list[tuple[FoundEntity, ...]]:
        assert self.captioner is not None
        settings, pixels = self.settings.interleaved, views(images)
        listed = self.captioner.entities(pixels, [texts[0] for texts in captions], settings.max_entities)
        named = [in_captions(names, texts) for names, texts in zip(listed, captions, strict=True)]
        boxes = self.grounder.ground(pixels, [phrases for phrases, _ in named], settings.min_score)
        found = [
            [(box, where) for box, where in zip(row, spans, strict=True) if box is not None]
            for row, (_, spans) in zip(boxes, named, strict=True)
        ]
        masks = self.segmenter.segment(pixels, [[box for box, _ in row] for row in found])
        return [self._cut_out(*each) for each in zip(images, found, masks, strict=True)]

    def _cut_out(
        self, image: LoadedImage, found: Sequence[tuple[Box, tuple[Span | None, ...]]], masks: Sequence[np.ndarray]
    ) -> tuple[FoundEntity, ...]:
        entities = []
        for (box, where), mask in zip(found, masks, strict=True):
            if mask.any() and mask.mean() >= self.settings.interleaved.min_area:
                entities.append(_entity(image, box, where, mask))
        return tuple(entity for entity in entities if entity is not None)


def in_captions(names: Sequence[str], captions: Sequence[str]) -> tuple[list[str], list[tuple[Span | None, ...]]]:
    """Return the phrases that stand in a caption, in its own words, in the order of the text, and their spans."""
    columns = [find_phrases(names, text) for text in captions]
    rows = [tuple(column[number] for column in columns) for number in range(len(names))]
    found = []
    for row in rows:
        for caption, span in zip(captions, row, strict=True):
            if span is not None:
                found.append((row, caption[slice(*span)]))
                break
    found.sort(key=lambda entry: [span is None for span in entry[0]] + [span[0] for span in entry[0] if span])
    return [phrase for _, phrase in found], [row for row, _ in found]


def _entity(image: LoadedImage, box: Box, spans: tuple[Span | None, ...], mask: np.ndarray) -> FoundEntity | None:
    assert image.rgb is not None
    height, width = image.rgb.shape[:2]
    mask = fit_labels(mask.astype(np.int64), SEGMENTATION, height, width) > 0
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    inside = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    picture = subject_image((Image.fromarray(image.rgb), mask)).crop(inside)
    return FoundEntity(box.label, spans, box.pixels(height, width), picture, mask)
