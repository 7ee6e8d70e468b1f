"""Images with captions, and pairs of pictures of one subject: what a CLIP model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
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
        root, split = images.info.root, images.split
        rules = Rules(root, split, None, None, allow_outside=images.info.allow_outside)
        self.prompts = read_prompts(rules)
        if missing := [sample.id for sample in images.samples if sample.id not in self.prompts]:
            raise UserError(
                f"{root / split / PROMPTS}: has no caption of {len(missing)} samples, first {missing[0]!r}: "
                "'mmdit data render' and 'mmdit data prompts' write them"
            )
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
        if not entities or rng.random() >= self.pair_share:
            return None
        entity = entities[int(rng.integers(len(entities)))]
        path = self.images.samples[index % len(self.images.samples)].files[IMAGE]
        assert path is not None
        other = Image.fromarray(read_picture(entity.images[int(rng.integers(len(entity.images)))]))
        return torch.stack([self._pixels(crop(read_picture(path), entity)), self._pixels(other)]), entity.phrase

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        """(3, H, W) in [-1, 1] at the size of the images."""
        codec = self.images.codecs[IMAGE]
        return self.images.transform({IMAGE: np.asarray(picture)}, {IMAGE: codec})[IMAGE]
