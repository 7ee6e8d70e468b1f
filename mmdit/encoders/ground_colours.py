"""CLIP's image tower and the pseudo-words made of it, trained on until these tell the colours of a picture's floor and wall.

A style that a picture shows ("in the style of the {scene}") reaches a generator through one word alone (``TIUEConditioner``).
B pictures, P crops, K kinds of ground, W width of the words, H W pixels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from mmdit.names import BACKGROUND_CLASSES

MIN_PIXELS = 40  # of a floor or a wall whose colour is asked for


class GroundReader(nn.Module):
    """Pseudo-words of pictures, and the mean colours of K = ``len(BACKGROUND_CLASSES)`` surfaces read from them.

    Colours are read by a fixed map, so that words carry them in parts as large as the map's scale asks for: whatever reads the
    words would not notice smaller ones.

    Args:
        tower: CLIP's image tower.
        pseudo_word: makes words of its embeddings. Both are trained.
        scale: colour, sRGB in [0, 1], of one standard deviation of the words.
    """

    mean: Tensor
    std: Tensor
    colour_map: Tensor

    def __init__(self, tower: CLIPVisionModelWithProjection, pseudo_word: nn.Sequential, scale: float = 0.15) -> None:
        super().__init__()
        self.tower, self.pseudo_word = tower.requires_grad_(True), pseudo_word.requires_grad_(True)
        last = pseudo_word[-1]
        assert isinstance(last, nn.Linear)
        width, count = last.out_features, 3 * len(BACKGROUND_CLASSES)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("colour_map", scale * nn.init.orthogonal_(torch.empty(count, width)))
        self.offset = nn.Parameter(torch.full((count,), 0.5))

    @torch.no_grad()
    def measure(self, pictures: Tensor) -> None:
        """Take the words' mean and standard deviation from some pictures, (B, 3, H, W) in [-1, 1]."""
        words = self.words(pictures)
        self.mean.copy_(words.mean(dim=0))
        self.std.copy_(words.std(dim=0).mean())

    def words(self, pictures: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> pseudo-words (B, W)."""
        return self.pseudo_word(self.tower(pixel_values=pictures).image_embeds)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (B, 3, H, W) in [-1, 1] -> words (B, W), and the colours that they tell, (B, K, 3), sRGB in [0, 1]."""
        words = self.words(pictures)
        return words, F.linear((words - self.mean) / self.std, self.colour_map, self.offset).unflatten(1, (-1, 3))


def mean_colours(rgb: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Mean colour of each class's pixels, (B, len(classes), 3), sRGB in [0, 1]; NaN = fewer than ``MIN_PIXELS``.

    ``rgb``: (B, 3, H, W) in [-1, 1]; ``labels``: (B, H, W).
    """
    shown = torch.stack([labels == number for number in classes], dim=1).to(rgb.dtype)  # (B, K, H, W)
    count = shown.sum(dim=(2, 3))[..., None]  # (B, K, 1)
    means = torch.einsum("bkhw,bchw->bkc", shown, rgb / 2 + 0.5) / count
    return torch.where(count >= MIN_PIXELS, means, torch.nan)


class GroundColourObjective:
    """Squared error of the colours, and of the words of pictures and of what is cut out of them to what they were.

    So a generator that reads these words goes on reading them.

    Args:
        reader: as it is before training; it is copied.
        colour_weight: weight of the colours' error against that of the words, in units of their standard deviation.
    """

    def __init__(self, reader: GroundReader, colour_weight: float = 30.0) -> None:
        self.before = copy.deepcopy(reader).eval().requires_grad_(False)
        self.colour_weight = colour_weight

    def __call__(self, reader: GroundReader, rgb: Tensor, colours: Tensor, crops: Tensor | None) -> dict[str, Tensor]:
        """Compute "loss", "kept" and "colour".

        Args:
            reader: what is trained.
            rgb: (B, 3, H, W) in [-1, 1]; without any, and without crops, the losses are 0.
            colours: (B, K, 3), NaN = not asked for.
            crops: (P, 3, H, W); None = none.
        """
        pictures = rgb if crops is None else torch.cat([rgb, crops])
        if len(pictures) == 0:
            nothing = reader.offset.sum() * 0.0  # whose gradients are zero
            return {"loss": nothing, "kept": nothing, "colour": nothing}
        with torch.no_grad():
            before = self.before.to(rgb.device).words(pictures)
        words, told = reader(pictures)
        kept = F.mse_loss(words, before) / reader.std.square()
        known = ~colours.isnan()
        error = torch.where(known, told[: len(rgb)] - colours.nan_to_num(), 0.0).square().sum()
        colour = error / known.sum().clamp_min(1)
        return {"loss": kept + self.colour_weight * colour, "kept": kept, "colour": colour}
