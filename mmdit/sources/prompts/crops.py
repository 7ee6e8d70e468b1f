"""The pipeline of UMM-Diffusion (arXiv 2303.09319): crops of an object detector whose labels stand in the caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from PIL import Image

from mmdit.sources.labelling.images import LoadedImage
from mmdit.sources.labelling.network import FrozenNetwork
from mmdit.sources.prompts.detection import Box, Detector
from mmdit.sources.prompts.lookup import find_phrases
from mmdit.sources.prompts.pipeline import FoundEntity, PromptPipeline, views
from mmdit.sources.prompts.settings import CropSettings, PromptSettings


def choose_boxes(boxes: Sequence[Box], settings: CropSettings) -> list[Box]:
    """Apply the filters as published: labels with several boxes are dropped, then boxes that are too small.

    Args:
        boxes: of one image, above the least score, the best first.
        settings: which of the filters hold.

    Returns:
        One box for each label that is left.
    """
    count = Counter(box.label for box in boxes)
    best: dict[str, Box] = {}
    for box in boxes:
        if settings.several or count[box.label] == 1:
            best.setdefault(box.label, box)
    return [box for box in best.values() if box.area >= settings.min_area]


class CropsPipeline(PromptPipeline):
    """Detector -> the label in the caption -> a crop of the box, background and all.

    Args:
        settings: how it runs.
        networks: "detector", and as ``PromptPipeline`` has them.
    """

    name: ClassVar[str] = "crops"
    picture_folder: ClassVar[str] = "crop"

    def __init__(self, settings: PromptSettings, networks: Mapping[str, FrozenNetwork]) -> None:
        super().__init__(settings, networks)
        detector = self.networks["detector"]
        assert isinstance(detector, Detector)
        self.detector = detector

    def facts(self) -> dict[str, Any]:
        return asdict(self.settings.crops)

    def refuses(self, image: LoadedImage) -> str:
        assert image.rgb is not None
        small = min(image.rgb.shape[:2]) < self.settings.crops.min_side
        return f"shorter side under --crops.min_side {self.settings.crops.min_side}" if small else ""

    def find(self, images: Sequence[LoadedImage], captions: Sequence[tuple[str, ...]]) -> list[tuple[FoundEntity, ...]]:
        detected = self.detector.detect(views(images), self.settings.crops.min_score)
        return [self._crop(*each) for each in zip(images, captions, detected, strict=True)]

    def _crop(self, image: LoadedImage, captions: tuple[str, ...], detected: Sequence[Box]) -> tuple[FoundEntity, ...]:
        assert image.rgb is not None
        boxes = choose_boxes(detected, self.settings.crops)
        found = [find_phrases([box.label for box in boxes], text) for text in captions]
        entities = []
        for number, box in enumerate(boxes):
            spans = tuple(spans[number] for spans in found)
            if any(spans):
                pixels = box.pixels(*image.rgb.shape[:2])
                picture = Image.fromarray(image.rgb).crop(pixels)
                entities.append(FoundEntity(box.label, spans, pixels, picture))
        return tuple(entities)
