"""Boxes: an object detector with labels of its own, and Grounding DINO with phrases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from mmdit.errors import UserError
from mmdit.sources.labelling.network import FrozenNetwork, join_equal, load_processor, load_transformers
from mmdit.sources.labelling.source import ModelSource

DETECTORS: Collection[str] = MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.keys()
GROUNDERS: Collection[str] = ("grounding-dino", "mm-grounding-dino")
_SEPARATORS = str.maketrans(dict.fromkeys(".?!", " "))  # what parts Grounding DINO's phrases


@dataclass(frozen=True)
class Box:
    """One object. ``corners``: (x0, y0, x1, y1) as shares of the image's width and height, 0 to 1."""

    label: str
    score: float
    corners: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        """Share of the image that it covers."""
        x0, y0, x1, y1 = self.corners
        return (x1 - x0) * (y1 - y0)

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in whole pixels, x1 and y1 excluded, one pixel at least."""
        (x0, x1), (y0, y1) = (
            (min(int(np.floor(low * size)), size - 1), max(int(np.ceil(high * size)), 1))
            for low, high, size in (
                (self.corners[0], self.corners[2], width),
                (self.corners[1], self.corners[3], height),
            )
        )
        return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _box(label: str, score: float, corners: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (min(max(float(value), 0.0), 1.0) for value in corners)
    return Box(label, score, (x0, y0, x1, y1))


class Detector(FrozenNetwork):
    """An object detector of transformers: DETR, RT-DETR, YOLOS, …

    Args:
        source: where the weights are.
        dtype: that it runs in.
    """

    def __init__(self, source: ModelSource, dtype: str) -> None:
        super().__init__(source, dtype)
        self.model = load_transformers(AutoModelForObjectDetection, source, self.dtype)
        self.processor = load_processor(AutoImageProcessor, source)
        names = {int(number): str(name) for number, name in self.model.config.id2label.items()}
        self.labels = {number: " ".join(name.replace("_", " ").split()) for number, name in names.items()}

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray], min_score: float) -> list[list[Box]]:
        """Find the objects of images (H, W, 3) uint8 with a score above ``min_score``, the best first.

        Classes without a name ("N/A", "LABEL_3") are left out. Images go through the network together where it sees them in
        one size; what is found in one depends on the others by rounding alone.
        """
        found: list[list[Box]] = [[] for _ in images]
        for numbers, inputs in join_equal([self.processor(images=[image], return_tensors="pt") for image in images]):
            outputs = self.model(**inputs.to(self.device, self.dtype))
            outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
            results = self.processor.post_process_object_detection(
                outputs, threshold=min_score, target_sizes=[(1, 1)] * len(numbers)
            )
            for number, result in zip(numbers, results, strict=True):
                found[number] = self._boxes(result)
        return found

    def _boxes(self, found: Mapping[str, Tensor]) -> list[Box]:
        boxes = [
            _box(self.labels[label], score, corners)
            for label, score, corners in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
            if _is_name(self.labels.get(label, ""))
        ]
        return sorted(boxes, key=lambda box: -box.score)


def _is_name(label: str) -> bool:
    return any(map(str.isalpha, label)) and label.upper() != "N/A" and not label.startswith("LABEL ")


class Grounder(FrozenNetwork):
    """Grounding DINO (arXiv 2303.05499): the box that fits a phrase best.

    Args:
        source: where the weights are.
        dtype: that it runs in.
    """

    def __init__(self, source: ModelSource, dtype: str) -> None:
        super().__init__(source, dtype)
        self.model = load_transformers(AutoModelForZeroShotObjectDetection, source, self.dtype)
        self.processor = load_processor(AutoProcessor, source)
        if not getattr(self.processor.tokenizer, "is_fast", False):
            raise UserError(f"{source.name}: its tokenizer is not a fast one: its tokens have no positions in the text")

    @torch.no_grad()
    def ground(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]], min_score: float
    ) -> list[list[Box | None]]:
        """Find phrases in images (H, W, 3) uint8, each image's own.

        The score of a box for a phrase is the highest of the phrase's tokens. Images go through the network together where it
        sees them in one size; shorter texts are padded, and the network's mask leaves the padding out, so that what is found
        in an image depends on the others by rounding alone.

        Returns:
            For each phrase of an image its best box, None where none scores above ``min_score`` or the text has no room for
            the phrase.
        """
        found: list[list[Box | None]] = [[] for _ in images]
        asked = [number for number, each in enumerate(phrases) if each]
        pixels = [self.processor.image_processor(images=images[number], return_tensors="pt") for number in asked]
        for group, inputs in join_equal(pixels):
            numbers = [asked[each] for each in group]
            texts, spans = zip(*(joined_phrases(phrases[number]) for number in numbers), strict=True)
            encoded = self.processor.tokenizer(
                list(texts),
                padding=True,
                truncation=True,
                return_token_type_ids=True,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            offsets = encoded.pop("offset_mapping").tolist()
            outputs = self.model(**inputs.to(self.device, self.dtype), **encoded.to(self.device))
            scores = outputs.logits.float().sigmoid().cpu()  # (images, queries, tokens)
            centres, sizes = outputs.pred_boxes.float().cpu().split(2, dim=-1)  # (images, queries, 2) each, as shares
            corners = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
            for row, number in enumerate(numbers):
                found[number] = [
                    _best_box(phrase, _tokens(span, offsets[row]), scores[row], corners[row], min_score)
                    for phrase, span in zip(phrases[number], spans[row], strict=True)
                ]
        return found


def _tokens(span: tuple[int, int], offsets: Sequence[Sequence[int]]) -> list[int]:
    """Which tokens, whose offsets in the text are given, lie in a span of it; padding lies nowhere."""
    start, end = span
    return [number for number, (first, last) in enumerate(offsets) if first < end and last > start]


def _best_box(phrase: str, tokens: Sequence[int], scores: Tensor, corners: Tensor, min_score: float) -> Box | None:
    """The box of the query with the highest score; ``scores``: (queries, tokens), ``corners``: (queries, 4)."""
    tokens = [token for token in tokens if token < scores.shape[1]]
    if not tokens:
        return None
    score, query = scores[:, tokens].amax(dim=1).max(dim=0)
    best = _box(phrase, float(score), corners[query].tolist())
    return best if best.score > min_score else None


def joined_phrases(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join phrases as Grounding DINO was trained: "a cat. a dog."; return the text and where each phrase is in it."""
    text, spans = "", []
    for phrase in phrases:
        words = " ".join(phrase.lower().translate(_SEPARATORS).split())
        start = len(text) + (1 if text else 0)
        text += f" {words}." if text else f"{words}."
        spans.append((start, start + len(words)))
    return text, spans
