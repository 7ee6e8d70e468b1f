"""What both pipelines share: captions and entities of images, found by frozen networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from mmdit.sources.labelling.images import LoadedImage
from mmdit.sources.labelling.network import FrozenNetwork
from mmdit.sources.prompts.captioner import Captioner
from mmdit.sources.prompts.lookup import Span
from mmdit.sources.prompts.quality import ClipJudge
from mmdit.sources.prompts.settings import PromptSettings

NO_CAPTION = "it has no caption: write one into a text file beside it, or name a --captioner"


@dataclass(frozen=True)
class FoundEntity:
    """One entity of an image of H x W pixels.

    Args:
        phrase: its name.
        spans: where it stands in each caption, None where it doesn't.
        box: (x0, y0, x1, y1) in pixels, x1 and y1 excluded.
        picture: of the entity alone.
        mask: (H, W) bool; None = not known.
    """

    phrase: str
    spans: tuple[Span | None, ...]
    box: tuple[int, int, int, int]
    picture: Image.Image
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Described:
    """One image: its captions and entities; or why it was ``dropped``; or the ``problem`` that it has."""

    captions: tuple[str, ...] = ()
    entities: tuple[FoundEntity, ...] = ()
    dropped: str = ""
    problem: str = ""


class PromptPipeline(ABC):
    """Frozen networks that describe images.

    Args:
        settings: how they run.
        networks: by the name of the option that chose each: "captioner" writes missing captions, "clip" judges.
    """

    name: ClassVar[str]
    picture_folder: ClassVar[str]  # in the split's folder

    def __init__(self, settings: PromptSettings, networks: Mapping[str, FrozenNetwork]) -> None:
        self.settings, self.networks = settings, dict(networks)
        captioner, judge = self.networks.get("captioner"), self.networks.get("clip")
        assert captioner is None or isinstance(captioner, Captioner)
        assert judge is None or isinstance(judge, ClipJudge)
        self.captioner, self.judge = captioner, judge

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what of the settings decides the outputs, besides what the networks say, as JSON values."""

    def refuses(self, image: LoadedImage) -> str:
        """Why an image is left out whatever its caption, "" if it isn't."""
        return ""

    @abstractmethod
    def find(self, images: Sequence[LoadedImage], captions: Sequence[tuple[str, ...]]) -> list[tuple[FoundEntity, ...]]:
        """Find the entities of images, whose captions are known."""

    def describe(self, images: Sequence[LoadedImage], given: Sequence[tuple[str, ...]]) -> list[Described]:
        """Describe images that could be read.

        Args:
            images: any number.
            given: the captions of each, () = to be written.
        """
        reasons = [self.refuses(image) for image in images]
        embeddings: dict[int, Tensor] = {}
        if self.judge is not None:
            left = [number for number, reason in enumerate(reasons) if not reason]
            embeddings = dict(zip(left, self.judge.embed_images(views([images[n] for n in left])), strict=True))
            for number in left:
                reasons[number] = self.judge.refuses_image(embeddings[number])
        results = {number: Described(dropped=reason) for number, reason in enumerate(reasons) if reason}
        left = [number for number in range(len(images)) if number not in results]
        written = self._write([images[number] for number in left if not given[number]])
        captions = {number: given[number] or (next(written),) for number in left}
        for number, texts in captions.items():
            if not texts[0]:
                results[number] = Described(
                    problem=NO_CAPTION if self.captioner is None else "the captioner wrote nothing"
                )
        left = [number for number in left if number not in results]
        if self.judge is not None:
            refused = self.judge.refuses_captions([embeddings[n] for n in left], [captions[n] for n in left])
            results |= {n: Described(dropped=reason) for n, reason in zip(left, refused, strict=True) if reason}
            left = [number for number in left if number not in results]
        found = self.find([images[number] for number in left], [captions[number] for number in left]) if left else []
        results |= {number: Described(captions[number], entities) for number, entities in zip(left, found, strict=True)}
        return [results[number] for number in range(len(images))]

    def _write(self, images: Sequence[LoadedImage]) -> Iterator[str]:
        """A caption for each image, "" where there is none."""
        if self.captioner is None:
            return repeat("", len(images))
        return iter(self.captioner.captions(views(images)))


def views(images: Sequence[LoadedImage]) -> list[np.ndarray]:
    """What networks see of images that could be read: (h, w, 3) uint8 each."""
    return [image.view for image in images if image.view is not None]
