"""Prompts that ask for the style of a picture, each beside one that tells the same by a floor and a wall."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmdit.data.captioned import own_picture, prompts_of
from mmdit.data.folder import AlignedFolder
from mmdit.data.prompted import PromptDraw, draw_picture, draw_prompt, largest_square
from mmdit.data.prompts import PROMPTS, CaptionedSample
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.names import BACKGROUND_CLASSES, GROUND_LEADS, STYLE_WORD
from mmdit.prompt import IMAGE_WORD, Prompt, mirror_text, parse, parse_text

MIN_SIDE = 4  # pixels of a square that shows a floor or a wall
STYLED = f"{GROUND_LEADS[STYLE_WORD]} {{{STYLE_WORD}}}"
TOLD = " ".join(f"{GROUND_LEADS[name]} {{{name}}}" for name in BACKGROUND_CLASSES)


class StyledPrompts(Dataset):
    """Of each picture two prompts that mean the same, and one that asks for no style, drawn anew at every position of the run.

    A batch holds ``id`` and three lists of prompts, and ``pair_id`` of the first two. ``styled`` and ``told`` are of one length,
    of the pictures whose floor and wall are both to be seen and which have a caption that names neither: "<caption> in the style
    of the {scene}", where the picture itself is the scene, and "<caption> on a {floor} against a {wall}", by squares of it.
    ``kept`` are ordinary ones, one of each picture, with pictures of what they name, but of no style.
    A mirrored image has mirrored captions.

    Args:
        images: the split, RGB and segmentation.
        seed: of the draws.
        max_subjects: the most pictures in an ordinary prompt.
        anonymous_share: share of the words in braces that are replaced by ``mmdit.prompt.IMAGE_WORD``.

    Raises:
        UserError: a split without captions, or whose captions all name a floor, a wall or a style, or a segmentation without
            floor or wall.
    """

    takes_positions = True

    def __init__(self, images: AlignedFolder, seed: int, max_subjects: int = 2, anonymous_share: float = 0.3) -> None:
        self.images, self.seed = images, seed
        self.prompts = prompts_of(images)
        self.classes = images.class_numbers(BACKGROUND_CLASSES)
        self.segmentation: Any = images.codecs["segmentation"]
        self.draw = PromptDraw("other", max_subjects, plain_share=0.2, anonymous_share=anonymous_share, masks=False)
        if not any(captions_without(sample, GROUND_LEADS).captions for sample in self.prompts.values()):
            raise UserError(
                f"{images.info.root / images.split / PROMPTS}: each caption names a floor, a wall or a style: give some that "
                "name none, to which a style can be added"
            )

    def texts(self) -> Iterator[tuple[str, str]]:
        """The longest text that a prompt of each caption may have, pictures left out, with the id of its sample."""
        mirrored = len(self.images) > len(self.images.samples)
        for name, sample in self.prompts.items():
            plain = set(captions_without(sample, GROUND_LEADS).captions)
            for text in sample.captions:
                for view in (text, mirror_text(text)) if mirrored else (text,):
                    yield name, f"{view} {parse_text(STYLED)}" if text in plain else view

    def __len__(self) -> int:
        return len(self.images)

    def read_batch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Any]:
        """Read a batch; ``positions`` are those of the samples in the run, None = ``indices``."""
        batch: dict[str, list[Any]] = {"id": [], "pair_id": [], "styled": [], "told": [], "kept": []}
        for index, position in zip(indices, indices if positions is None else positions, strict=True):
            item = self.images[index]
            rng = np.random.default_rng([self.seed, position])
            sample, is_mirrored = self.prompts[item["id"]], index >= len(self.images.samples)
            batch["id"].append(item["id"])
            if (pair := self._pair(sample, item, is_mirrored, rng)) is not None:
                batch["pair_id"].append(item["id"])
                batch["styled"].append(pair[0])
                batch["told"].append(pair[1])
            batch["kept"].append(self._kept(sample, index, is_mirrored, rng))
        return batch

    def _pair(
        self, sample: CaptionedSample, item: dict[str, Any], is_mirrored: bool, rng: np.random.Generator
    ) -> tuple[Prompt, Prompt] | None:
        plain = captions_without(sample, GROUND_LEADS)
        if not plain.captions or not item["present"].all():
            return None
        rgb = self.images.codecs[IMAGE].decode(item[IMAGE][None])[0]
        labels = self.segmentation.rows(item["segmentation"][None])[0].numpy()  # (H, W)
        masks = [labels == number for number in self.classes]
        if not all(mask.any() for mask in masks):
            return None
        squares = [largest_square(rgb, mask) for mask in masks]
        if min(square.shape[0] for square in squares) < MIN_SIDE:
            return None
        caption = Prompt(str(rng.choice(plain.captions)))
        if is_mirrored:
            caption = caption.mirrored()
        styled = STYLED.replace(STYLE_WORD, IMAGE_WORD) if rng.random() < self.draw.anonymous_share else STYLED
        return (
            parse(f"{caption.template} {styled}", [Image.fromarray(rgb)]),
            parse(f"{caption.template} {TOLD}", [Image.fromarray(square) for square in squares]),
        )

    def _kept(self, sample: CaptionedSample, index: int, is_mirrored: bool, rng: np.random.Generator) -> Prompt:
        own = own_picture(self.images, index)
        unstyled = captions_without(sample, [STYLE_WORD])
        if unstyled.captions:
            drawn = draw_prompt(unstyled, self.draw, rng, has_picture=own is not None)
            pictures = [draw_picture(drawn.entities[place], own, self.draw.pictures, rng) for place in drawn.shown]
            prompt = replace(drawn.prompt, images=tuple(pictures))
        else:
            prompt = Prompt(str(rng.choice(sample.captions)))
        return prompt.mirrored() if is_mirrored else prompt


def captions_without(sample: CaptionedSample, nouns: Collection[str]) -> CaptionedSample:
    """The sample with those of its captions that name nothing whose last word is one of ``nouns``."""
    named = [entity for entity in sample.entities if entity.noun in nouns]
    kept = [i for i in range(len(sample.captions)) if all(entity.spans[i] is None for entity in named)]
    entities = tuple(replace(each, spans=tuple(each.spans[i] for i in kept)) for each in sample.entities)
    return replace(sample, captions=tuple(sample.captions[i] for i in kept), entities=entities)
