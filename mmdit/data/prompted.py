"""Latents with prompts: each time a sample is met, one of its captions is drawn, and pictures of what its words name.

A draw is a function of (seed, position), where position counts the samples of the run: the same for any number of processes,
and after a resume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_cdt
from torch.utils.data import Dataset

from mmdit.data.entity_counts import COUNTS
from mmdit.data.latents import LatentShards
from mmdit.data.lines import MANIFEST, Rules
from mmdit.data.manifest import NO_CATEGORY, read_dataset_info, read_manifest
from mmdit.data.problems import Problem
from mmdit.data.prompts import NO_PROMPT, PROMPTS, CaptionedSample, Entity, read_prompts
from mmdit.data.transforms import JointTransform
from mmdit.errors import UserError, unknown_name
from mmdit.modalities import IMAGE
from mmdit.modalities.rgb import WHITE, on_white, read_picture
from mmdit.modalities.stored import open_stored
from mmdit.names import BACKGROUND_CLASSES, GROUND_LEADS
from mmdit.prompt import IMAGE_WORD, Prompt, Span

SEARCHED = 256  # cells along the shorter side in which a square is looked for
MARGIN = 0.1  # around the box of a crop, as a share of its longer side


@dataclass(frozen=True)
class PromptDraw:
    """How prompts are drawn.

    Args:
        pictures: name in ``PICTURES``: what a subject is shown by.
        max_subjects: the most words with a picture in one prompt; 0 = text alone.
        plain_share: share of the samples whose caption comes without pictures (UNIMO-G, arXiv 2401.13388: 0.1).
        anonymous_share: share of the subjects whose words are replaced by ``IMAGE_WORD``, so that the picture alone says
            what they are.
        label_share: share of the samples that keep their category. Where it always stood beside the caption, nothing would
            be learned of the category from words.
        label_alone_share: share of those that come without their caption.
        counts: how many words have a picture, a name in ``mmdit.data.entity_counts.COUNTS``.
        masks: whether masks are read; without them they are all None.
    """

    pictures: str = "other"
    max_subjects: int = 4
    plain_share: float = 0.0
    anonymous_share: float = 0.0
    label_share: float = 0.0
    label_alone_share: float = 0.0
    counts: str = "uniform"
    masks: bool = True

    def __post_init__(self) -> None:
        if self.pictures not in PICTURES:
            raise unknown_name("prompts.pictures", self.pictures, PICTURES)
        if self.counts not in COUNTS:
            raise unknown_name("prompts.counts", self.counts, COUNTS)


# What shows a subject -> the share of crops of the sample's own picture where there are other pictures too. "other" leaves out
# subjects without another picture (copying a crop would be learned); crops of the own picture are UMM-Diffusion's way. In any
# case a floor or a wall is shown by a square of itself (``is_surface``): another picture would show what stands on it too, and
# which of its surfaces is meant would not be seen. A whole scene, as a style, is shown by another picture where it has one.
PICTURES: dict[str, float | None] = {"other": None, "crop": 1.0, "either": 0.5}


_NO_PROMPT: dict[str, Any] = {
    "caption": "",
    "subjects": [],
    "subject_masks": [],
    "shows_ground": False,
    "mentions": [],
    "mention_masks": [],
}


class PromptedLatents(Dataset):
    """``LatentShards`` whose batches also hold prompts.

    A batch has, beside that of ``latents``, by sample: ``caption``, a template as ``mmdit.prompt.parse`` reads it, "" = none;
    ``subjects``, a list of PIL images, one per brace; ``subject_masks``, a list of bool (H, W), where each of
    them is in the part of the picture that was encoded, None = not known; ``shows_ground``, whether one of them is a floor, a
    wall or a whole scene; ``mentions`` and ``mention_masks``, the same of all
    that the caption names, with or without a picture: (start, end) in characters of the text without braces. ``category`` is
    -1 where the label is not shown.
    A mirrored view has a mirrored caption and mirrored masks.

    Args:
        latents: the encoded split.
        root: the dataset folder that it was encoded from, with ``<split>/prompts.jsonl``.
        draw: how prompts are drawn.
        seed: of the draws.
        allow_outside: accept paths outside ``root``.

    Raises:
        UserError: no prompts, or bad ones; a dataset whose pictures are not those that were encoded.
    """

    takes_positions = True

    def __init__(
        self, latents: LatentShards, root: str | Path, draw: PromptDraw, seed: int, *, allow_outside: bool = False
    ) -> None:
        self.latents, self.draw, self.seed = latents, draw, seed
        info = read_dataset_info(root, allow_outside=allow_outside)
        split = latents.split
        rules = Rules(info.root, split, None, None, allow_outside=allow_outside)
        self.prompts = read_prompts(rules)
        if not self.prompts and (info.root / split / PROMPTS).is_file():
            raise Problem(f"{split}/{PROMPTS}", NO_PROMPT).error(info.root)
        if not self.prompts:
            raise UserError(
                f"{info.root / split / PROMPTS}: no such file; 'mmdit data render' and 'mmdit data prompts' write it"
            )
        if not any(sample_id in self.prompts for sample_id in latents.ids):
            raise UserError(
                f"{info.root / split / PROMPTS}: has no sample that {latents.root} holds: give the dataset that was encoded"
            )
        # Latents show what of a picture has their proportions; a mask is of the whole picture.
        height, width = latents.info.moments_shape[1:]
        self._transform = JointTransform((height, width))
        self._pictures: dict[str, str] = {}
        samples = []
        if draw.max_subjects > 0 or (info.root / split / MANIFEST).is_file():
            samples = read_manifest(info, split)
        latents.refuse_other_source(info.root, samples)
        if draw.max_subjects > 0:
            self._pictures = {
                sample.id: str(path) for sample in samples if (path := sample.files.get(IMAGE)) is not None
            }

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.latents[index]
        return {**item, **self._prompt(index, index, int(item["category"]))}

    def read_batch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Any]:
        """Read a batch; ``positions`` (those of the samples in the run) are the draws, None = ``indices``."""
        batch = self.latents.read_batch(indices)
        categories = batch["category"].tolist()
        rows = zip(indices, indices if positions is None else positions, categories, strict=True)
        drawn = [self._prompt(*row) for row in rows]
        prompts = {key: [one[key] for one in drawn] for key in drawn[0]}
        return batch | prompts | {"category": torch.tensor(prompts["category"])}

    def _prompt(self, index: int, position: int, category: int) -> dict[str, Any]:
        view, row = divmod(index, len(self.latents.ids))
        sample = self.prompts.get(self.latents.ids[row])
        rng = np.random.default_rng([self.seed, position])
        shown, alone = rng.random() < self.draw.label_share, rng.random() < self.draw.label_alone_share
        if sample is None:
            return {"category": category, **_NO_PROMPT}
        if category == NO_CATEGORY or not shown:
            category, alone = NO_CATEGORY, False
        if alone:
            return {"category": category, **_NO_PROMPT}
        own = self._own_picture(sample)
        drawn = draw_prompt(sample, self.draw, rng, has_picture=own is not None)
        subjects = [draw_picture(drawn.entities[place], own, self.draw.pictures, rng) for place in drawn.shown]
        masks = [self._seen(_mask_of(entity)) if self.draw.masks else None for entity in drawn.entities]
        if view == 1:
            drawn = replace(drawn, mentions=drawn.mentions.mirrored())
            masks = [None if mask is None else mask[:, ::-1] for mask in masks]
        return {
            "category": category,
            "caption": drawn.prompt.template,
            "subjects": subjects,
            "subject_masks": [masks[place] for place in drawn.shown],
            "shows_ground": any(drawn.entities[place].noun in GROUND_LEADS for place in drawn.shown),
            "mentions": [(span.start, span.end) for span in drawn.mentions.spans],
            "mention_masks": masks,
        }

    def _seen(self, mask: np.ndarray | None) -> np.ndarray | None:
        if mask is None:
            return None
        box = self._transform.draw(*mask.shape)
        seen = mask[box.top : box.top + box.crop_height, box.left : box.left + box.crop_width]
        return seen if seen.any() else None  # outside what was encoded: nowhere that attention could go

    def _own_picture(self, sample: CaptionedSample) -> str | None:
        """The file of the sample's own picture; None where it is not there, or not any more: latents do without."""
        path = self._pictures.get(sample.id)
        return path if path is not None and os.path.isfile(path) else None


@dataclass(frozen=True)
class DrawnPrompt:
    """A caption, what it names, and which of that is shown by a picture.

    Args:
        mentions: the text, with a span for each of ``entities``, in the order of the text.
        entities: what the spans name.
        shown: numbers of those that come with a picture, ascending.
    """

    mentions: Prompt
    entities: tuple[Entity, ...]
    shown: tuple[int, ...]

    @property
    def prompt(self) -> Prompt:
        """The text with the spans of what is shown, which count the pictures."""
        spans = (self.mentions.spans[place] for place in self.shown)
        return Prompt(self.mentions.text, tuple(replace(span, subject=i) for i, span in enumerate(spans)))


def draw_prompt(sample: CaptionedSample, draw: PromptDraw, rng: np.random.Generator, has_picture: bool) -> DrawnPrompt:
    """Draw a caption and which of its entities are shown by a picture.

    ``has_picture``: whether the sample's own picture is there to be cropped.
    """
    number = int(rng.integers(len(sample.captions)))
    text = sample.captions[number]
    crops = has_picture and PICTURES[draw.pictures] is not None

    def can_be_shown(entity: Entity) -> bool:
        return bool(entity.images) or (crops and entity.box is not None) or (has_picture and is_surface(entity))

    said = [(span, entity) for entity in sample.entities if (span := entity.spans[number]) is not None]
    named = _apart(sorted(said, key=lambda pair: (not can_be_shown(pair[1]), pair[0])))
    able = [i for i, (_, entity) in enumerate(named) if can_be_shown(entity)]
    most = min(len(able), draw.max_subjects)
    plain = rng.random() < draw.plain_share
    shown: list[int] = []
    if most > 0 and not plain:
        shown = sorted(able[i] for i in rng.permutation(len(able))[: COUNTS[draw.counts](most, rng)])
    words, placed, end = "", [], 0
    for place, ((start, stop), _) in enumerate(named):
        word = IMAGE_WORD if place in shown and rng.random() < draw.anonymous_share else text[start:stop]
        words += text[end:start]
        placed.append(Span(len(words), len(words) + len(word), place))
        words, end = words + word, stop
    entities = tuple(entity for _, entity in named)
    return DrawnPrompt(Prompt(words + text[end:], tuple(placed)), entities, tuple(shown))


def draw_picture(entity: Entity, own: str | Path | None, pictures: str, rng: np.random.Generator) -> Image.Image:
    """Draw what shows an entity, by a name in ``PICTURES``; ``own``: the file of the sample's own picture, None = not there."""
    share = PICTURES[pictures]
    if own is not None and is_surface(entity):
        return crop(read_picture(own), entity)
    if entity.images and (own is None or share is None or rng.random() >= share):
        return Image.fromarray(read_picture(entity.images[int(rng.integers(len(entity.images)))]))
    assert own is not None
    rgb = read_picture(own)
    if entity.images and is_ground(entity, *rgb.shape[:2]):
        return Image.fromarray(read_picture(entity.images[0]))
    return crop(rgb, entity)


def _apart(named: list[tuple[tuple[int, int], Entity]]) -> list[tuple[tuple[int, int], Entity]]:
    """Those that don't overlap one before them in the list, in the order of the text."""
    kept: list[tuple[tuple[int, int], Entity]] = []
    for span, entity in named:
        if all(span[1] <= start or span[0] >= end for (start, end), _ in kept):
            kept.append((span, entity))
    return sorted(kept, key=lambda pair: pair[0])


def _mask_of(entity: Entity) -> np.ndarray | None:
    return None if entity.mask is None else read_mask(entity.mask)


def read_mask(path: Path) -> np.ndarray:
    """Read an entity's mask as bool (H, W): what is not black. Raises UserError for what is no image."""
    stored = open_stored(path)
    values = np.asarray(stored.image.convert("L")) if stored.image is not None else np.asarray(stored.array)
    if values.ndim != 2:
        raise stored.error(f"the mask has shape {values.shape}: give (height, width)")
    return values > 0


def is_surface(entity: Entity) -> bool:
    """Whether an entity is a floor or a wall, by its last word, whose place in the picture is known."""
    return entity.mask is not None and entity.noun in BACKGROUND_CLASSES


def is_ground(entity: Entity, height: int, width: int) -> bool:
    """Whether an entity reaches three sides of its picture, as a floor, a wall or the whole scene does.

    Cut out it would show where everything else stands, and a model would learn to copy that.
    """
    x0, y0, x1, y1 = entity.box or (0, 0, width, height)
    return (x0 <= 0) + (y0 <= 0) + (x1 >= width) + (y1 >= height) >= 3


def check_place(entity: Entity, mask: np.ndarray | None, height: int, width: int) -> None:
    """Raise UserError for a mask of another size than the entity's picture, or a box outside of it."""
    if mask is not None and mask.shape != (height, width):
        raise UserError(
            f"{entity.mask}: the mask is {mask.shape[0]} x {mask.shape[1]}, its picture {height} x {width}: give one size"
        )
    if entity.box is not None and (entity.box[0] >= width or entity.box[1] >= height):
        raise UserError(
            f"entity {entity.phrase!r}: box {list(entity.box)} is outside its picture of {width} x {height}"
        )


def judge_entities(sample: CaptionedSample, picture: Path | None) -> list[str]:
    """Read all that a sample's entities name, and look where they are in its ``picture``. Returns what is wrong.

    None, or a picture that can't be read, leaves sizes and boxes uncompared.
    """
    reasons: list[str] = []

    def tried(path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray | None:
        try:
            return read(path)
        except UserError as error:
            reasons.append(str(error))
        except Exception as error:  # whatever a file holds, the others are looked at
            reasons.append(f"{path}: can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return None

    placed = any(entity.mask is not None or entity.box is not None for entity in sample.entities)
    own = tried(picture, read_picture) if placed and picture is not None else None
    reasons.clear()  # that is a matter of the manifest
    for entity in sample.entities:
        for image in entity.images:
            tried(image, read_picture)
        mask = None if entity.mask is None else tried(entity.mask, read_mask)
        if own is not None:
            try:
                check_place(entity, mask, *own.shape[:2])
            except UserError as error:
                reasons.append(str(error))
    return reasons


def crop(rgb: np.ndarray, entity: Entity) -> Image.Image:
    """Cut an entity out of its picture (H, W, 3): a square around its box, white where its mask is not.

    Of a floor or a wall it is the largest square within the mask: its outline would show what stands on it, and where.
    """
    height, width = rgb.shape[:2]
    mask = _mask_of(entity)
    check_place(entity, mask, height, width)
    if mask is not None and mask.any() and is_ground(entity, height, width):
        return Image.fromarray(largest_square(rgb, mask))
    if mask is not None:
        rgb = on_white(rgb, mask)
    x0, y0, x1, y1 = entity.box or (0, 0, width, height)
    x1, y1 = min(x1, width), min(y1, height)
    side = max(x1 - x0, y1 - y0) * (1 + 2 * MARGIN)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    side = max(1, round(side))
    picture = Image.new("RGB", (side, side), (WHITE,) * 3)
    picture.paste(Image.fromarray(rgb), (-left, -top))
    return picture


def largest_square(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The largest square of a picture (H, W, 3) within a mask (H, W) that is not empty; of a large one a little less.

    Cells stand for pixels there, as many as keep it quick: those that are all within.
    """
    cell = max(1, min(mask.shape) // SEARCHED)
    height, width = (side // cell for side in mask.shape)
    blocks = mask[: height * cell, : width * cell].reshape(height, cell, width, cell)
    cells = np.asarray(blocks.all((1, 3)))
    if not cells.any():
        cell, cells = 1, mask
    radius = distance_transform_cdt(np.pad(cells, 1), metric="chessboard")[1:-1, 1:-1]  # to the nearest cell outside
    y, x = np.unravel_index(int(radius.argmax()), cells.shape)
    reach = int(radius[y, x]) - 1
    top, left, side = (int(y) - reach) * cell, (int(x) - reach) * cell, (2 * reach + 1) * cell
    return rgb[top : top + side, left : left + side]
