"""Images with captions, pairs of pictures of one subject, and what is cut out of them: what CLIP models are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from mmdit.data.folder import AlignedFolder
from mmdit.data.lines import Rules
from mmdit.data.prompted import PromptDraw, crop, draw_prompt
from mmdit.data.prompts import PROMPTS, CaptionedSample, read_prompts
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.modalities.rgb import read_picture


class CaptionedImages(Dataset):
    """RGB images with a caption each, drawn anew at every position of the run.

    A batch holds ``rgb`` (B, 3, H, W) float32 in [-1, 1], ``caption`` (list of B texts), ``id``, and where samples
    have entities with other pictures ``pairs`` (P, 2, 3, H, W): a subject cut out of its picture, and another picture of it, and
    ``phrases`` (list of P texts), what it is called.
    Mirrored images have mirrored captions.

    Args:
        images: the split, RGB alone.
        seed: of the draws.
        anonymous_share: share of the captions in which a name is replaced by ``mmdit.prompt.IMAGE_WORD``.
        pair_share: share of the samples that bring a pair of pictures.

    Raises:
        UserError: a split without captions.
    """

    takes_positions = True

    def __init__(
        self, images: AlignedFolder, seed: int, anonymous_share: float = 0.15, pair_share: float = 0.25
    ) -> None:
        self.images, self.seed, self.pair_share = images, seed, pair_share
        self.prompts = prompts_of(images)
        self.draw = PromptDraw("either", max_subjects=1, plain_share=1 - anonymous_share, anonymous_share=1.0)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captions(self) -> list[str]:
        """Every caption of the split."""
        return [text for sample in self.prompts.values() for text in sample.captions]

    def read_batch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Any]:
        """Read a batch; ``positions`` are those of the samples in the run, None = ``indices``."""
        items, captions, pairs, phrases = [], [], [], []
        for index, position in zip(indices, indices if positions is None else positions, strict=True):
            item = self.images[index]
            items.append({key: item[key] for key in ("id", IMAGE)})
            rng = np.random.default_rng([self.seed, position])
            sample = self.prompts[item["id"]]
            prompt = draw_prompt(sample, self.draw, rng, has_picture=True).mentions
            is_mirrored = index >= len(self.images.samples)
            captions.append(prompt.mirrored().text if is_mirrored else prompt.text)
            if (found := self._pair(sample, index, rng)) is not None:
                pairs.append(found[0])
                phrases.append(found[1])
        batch = {**default_collate(items), "caption": captions}
        return batch | ({"pairs": torch.stack(pairs), "phrases": phrases} if pairs else {})

    def _pair(self, sample: CaptionedSample, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, str] | None:
        entities = [entity for entity in sample.entities if entity.images]
        if not entities or own_picture(self.images, index) is None or rng.random() >= self.pair_share:
            return None
        entity = entities[int(rng.integers(len(entities)))]
        other = Image.fromarray(read_picture(entity.images[int(rng.integers(len(entity.images)))]))
        shown = (crop(_picture(self.images, index), entity), other)
        return torch.stack([_pixels(picture, self.images) for picture in shown]), entity.phrase


class ImagesWithCrops(Dataset):
    """Images, and of each one thing that its caption names, cut out of it, drawn anew at every position of the run.

    A batch holds what ``images`` gives, stacked, and where samples have entities with masks ``crops`` (P, 3, H, W) float32
    in [-1, 1], as ``mmdit.data.prompted.crop`` cuts.

    Args:
        images: the split, RGB among its modalities.
        seed: of the draws.

    Raises:
        UserError: a split without captions.
    """

    takes_positions = True

    def __init__(self, images: AlignedFolder, seed: int) -> None:
        self.images, self.seed = images, seed
        self.prompts = prompts_of(images)

    def __len__(self) -> int:
        return len(self.images)

    def read_batch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Any]:
        """Read a batch; ``positions`` are those of the samples in the run, None = ``indices``."""
        items, crops = [], []
        for index, position in zip(indices, indices if positions is None else positions, strict=True):
            item = self.images[index]
            items.append(item)
            entities = [entity for entity in self.prompts[item["id"]].entities if entity.mask is not None]
            if entities and own_picture(self.images, index) is not None:
                rng = np.random.default_rng([self.seed, position])
                cut = crop(_picture(self.images, index), entities[int(rng.integers(len(entities)))])
                crops.append(_pixels(cut, self.images))
        return default_collate(items) | ({"crops": torch.stack(crops)} if crops else {})


def prompts_of(images: AlignedFolder) -> Mapping[str, CaptionedSample]:
    """The captions of a split, by sample. Raises UserError where a sample has none."""
    root, split = images.info.root, images.split
    prompts = read_prompts(Rules(root, split, None, None, allow_outside=images.info.allow_outside))
    if missing := [sample.id for sample in images.samples if sample.id not in prompts]:
        raise UserError(
            f"{root / split / PROMPTS}: has no caption of {len(missing)} samples, first {missing[0]!r}: "
            "'mmdit data render' and 'mmdit data prompts' write them"
        )
    return prompts


def own_picture(images: AlignedFolder, index: int) -> Path | None:
    """The file of an item's whole picture, which is not mirrored; None where it has none."""
    return images.samples[index % len(images.samples)].files[IMAGE]


def _picture(images: AlignedFolder, index: int) -> np.ndarray:
    """The whole picture of an item, as its file has it: (H, W, 3) uint8."""
    path = own_picture(images, index)
    assert path is not None
    return read_picture(path)


def _pixels(picture: Image.Image, images: AlignedFolder) -> torch.Tensor:
    """(3, H, W) in [-1, 1] at the size of the images."""
    return images.transform({IMAGE: np.asarray(picture)}, {IMAGE: images.codecs[IMAGE]})[IMAGE]
