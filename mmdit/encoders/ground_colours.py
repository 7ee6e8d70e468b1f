"""CLIP's image tower, trained on until its embedding of a picture tells the colours of the picture's floor and wall.

A style that a picture shows ("in the style of the {scene}") reaches a generator through this embedding alone.
B pictures, P crops, K kinds of ground, W width of the embedding, H W pixels.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from mmdit.encoders.contrastive import image_processor
from mmdit.names import BACKGROUND_CLASSES

MIN_PIXELS = 40  # of a floor or a wall whose colour is asked for


class GroundReader(nn.Module):
    """An image tower, and a linear map from its embedding to the mean colours of K = ``len(BACKGROUND_CLASSES)`` surfaces.

    Args:
        tower: what is trained; the map is for the training alone.
    """

    def __init__(self, tower: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(True)
        self.colours = nn.Linear(int(tower.config.projection_dim), 3 * len(BACKGROUND_CLASSES))
        nn.init.constant_(self.colours.bias, 0.5)

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.tower.config.image_size)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (B, 3, H, W) in [-1, 1] -> embeddings (B, W) and colours (B, K, 3), sRGB in [0, 1]."""
        embeddings = self.tower(pixel_values=rgb).image_embeds
        return embeddings, self.colours(embeddings).unflatten(1, (-1, 3))

    def save_tower(self, folder: Path) -> None:
        """Write the tower and its image processor, as transformers lays them out."""
        self.tower.save_pretrained(folder, safe_serialization=True)
        image_processor(self.image_size).save_pretrained(folder)


def mean_colours(rgb: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Mean colour of each class's pixels, (B, len(classes), 3), sRGB in [0, 1]; NaN = fewer than ``MIN_PIXELS``.

    ``rgb``: (B, 3, H, W) in [-1, 1]; ``labels``: (B, H, W).
    """
    shown = torch.stack([labels == number for number in classes], dim=1).to(rgb.dtype)  # (B, K, H, W)
    count = shown.sum(dim=(2, 3))[..., None]  # (B, K, 1)
    means = torch.einsum("bkhw,bchw->bkc", shown, rgb / 2 + 0.5) / count
    return torch.where(count >= MIN_PIXELS, means, torch.nan)


class GroundColourObjective:
    """Squared error of the colours, and of the embeddings of pictures and of what is cut out of them to what they were.

    So a generator that reads these embeddings goes on reading them.

    Args:
        reader: as it is before training; its tower is copied.
        colour_weight: weight of the colours' error against that of the embeddings, in units of their standard deviation.
    """

    def __init__(self, reader: GroundReader, colour_weight: float = 30.0) -> None:
        self.before = copy.deepcopy(reader.tower).eval().requires_grad_(False)
        self.colour_weight = colour_weight

    def __call__(self, reader: GroundReader, rgb: Tensor, colours: Tensor, crops: Tensor | None) -> dict[str, Tensor]:
        """Compute "loss", "kept" and "colour".

        Args:
            reader: what is trained.
            rgb: (B, 3, H, W) in [-1, 1].
            colours: (B, K, 3), NaN = not asked for.
            crops: (P, 3, H, W); None = none.
        """
        pictures = rgb if crops is None else torch.cat([rgb, crops])
        with torch.no_grad():
            before = self.before.to(rgb.device)(pixel_values=pictures).image_embeds
        embeddings, read = reader(pictures)
        kept = F.mse_loss(embeddings, before) / before.var(dim=0).mean().clamp_min(1e-12)
        known = ~colours.isnan()
        error = torch.where(known, read[: len(rgb)] - colours.nan_to_num(), 0.0).square().sum()
        colour = error / known.sum().clamp_min(1)
        return {"loss": kept + self.colour_weight * colour, "kept": kept, "colour": colour}
