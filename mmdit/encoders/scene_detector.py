"""A small convolutional network that says what every pixel of a scene shows: floor, wall, or an object of a category.

It measures what prompts made (``mmdit.metrics.prompts``), so it is trained on scenes apart from the generator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.encoders.saved_network import SavedNetwork
from mmdit.encoders.scene_teacher import jittered
from mmdit.errors import UserError

_GROUPS = 8


class SceneDetector(SavedNetwork):
    """A U-Net (arXiv 1505.04597) with residual blocks. Shapes: B images, K labels, H and W multiples of ``multiple``.

    Args:
        labels: names of the classes, in the order of the logits.
        image_size: of the images it was trained on, pixels.
        patch_size: pixels that the first convolution sees as one, and the last one writes.
        channels: of each level; each after the first has half the size of the one before.
        blocks: residual blocks of each level on the way down; one on the way up.
    """

    what = "scene detector"

    def __init__(
        self,
        labels: Sequence[str],
        image_size: int = 64,
        *,
        patch_size: int = 4,
        channels: Sequence[int] = (48, 96, 96),
        blocks: Sequence[int] = (2, 3, 2),
    ) -> None:
        super().__init__()
        if len(channels) != len(blocks) or not channels or any(width % _GROUPS for width in channels):
            raise UserError(
                f"detector channels are {list(channels)}, blocks {list(blocks)}: give as many of both, channels in "
                f"multiples of {_GROUPS}"
            )
        self.config = {
            "labels": list(labels),
            "image_size": image_size,
            "patch_size": patch_size,
            "channels": list(channels),
            "blocks": list(blocks),
        }
        self.labels = tuple(labels)
        self.patch_size, self.multiple = patch_size, patch_size * 2 ** (len(channels) - 1)
        self.stem = nn.Conv2d(3 * patch_size**2, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(*(_ResidualBlock(width) for _ in range(count)))
            for width, count in zip(channels, blocks, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(wide, narrow, 2, stride=2) for wide, narrow in pairwise(channels))
        self.grow = nn.ModuleList(
            nn.Conv2d(low + high, high, 3, padding=1) for low, high in zip(channels[1:], channels, strict=False)
        )
        self.up = nn.ModuleList(_ResidualBlock(width) for width in channels[:-1])
        self.norm = nn.GroupNorm(_GROUPS, channels[0])
        self.head = nn.Conv2d(channels[0], len(labels) * patch_size**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> logits (B, K, H, W)."""
        x = self.stem(F.pixel_unshuffle(images.to(self.head.weight), self.patch_size))  # (B, c, H / p, W / p)
        levels = []
        for number, level in enumerate(self.down):
            x = level(x)
            if number < len(self.shrink):
                levels.append(x)
                x = self.shrink[number](x)
        for number in reversed(range(len(levels))):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.up[number](self.grow[number](torch.cat([x, levels[number]], dim=1)))
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch_size)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class SceneDetectorObjective:
    """Cross-entropy per pixel of a ``SceneDetector``.

    Half of the images are enlarged around one object, as the instrument looks at each object a second time. Colours say
    nothing of a category, so red, green and blue change places at random. Generated pictures pass an autoencoder and are
    softer than renders: brightness and contrast are jittered, half of the images are blurred a little, and noise is added.

    Args:
        background_labels: rows of the classes that are not objects; background_weight: of their pixels.
        zoom_share: share of the images that are enlarged; zoom: range of the side of what is kept, over the object's.
        jitter: of brightness and contrast; noise: standard deviation, in [-1, 1].
    """

    def __init__(
        self,
        background_labels: Sequence[int] = (0, 1),
        background_weight: float = 0.25,
        zoom_share: float = 0.5,
        zoom: tuple[float, float] = (1.3, 3.0),
        jitter: float = 0.15,
        noise: float = 0.03,
    ) -> None:
        self.background_labels, self.background_weight = tuple(background_labels), background_weight
        self.zoom_share, self.zoom = zoom_share, zoom
        self.jitter, self.noise = jitter, noise

    def __call__(
        self, detector: SceneDetector, images: Tensor, *, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor | tuple[Tensor, int]]:
        """images (B, 3, H, W) in [-1, 1], labels (B, H, W) rows of the classes -> "loss", "object_accuracy" with its pixels."""
        images, labels = self._enlarged(images, labels, generator)
        logits = detector(self._worsened(images, generator))
        weight = torch.ones(logits.shape[1], device=labels.device)
        weight[list(self.background_labels)] = self.background_weight
        loss = F.cross_entropy(logits, labels, weight=weight)
        right = (logits.argmax(dim=1) == labels)[~self._is_background(labels)].float()
        return {"loss": loss, "object_accuracy": (right.mean(), len(right))}

    def _is_background(self, labels: Tensor) -> Tensor:
        return torch.isin(labels, torch.tensor(self.background_labels, device=labels.device))

    def _enlarged(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some images enlarged around the pixels of one class of object, each class of an image alike likely."""
        boxes = torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(images), 1)
        draws = torch.rand(len(images), 3, generator=generator)
        low, high = self.zoom
        for row, (chance, which, size) in enumerate(draws.tolist()):
            classes = labels[row][~self._is_background(labels[row])].unique()
            if chance >= self.zoom_share or len(classes) == 0:
                continue
            chosen = classes[min(int(which * len(classes)), len(classes) - 1)]
            boxes[row] = torch.tensor(zoom_box(labels[row] == chosen, low + (high - low) * size))
        return enlarge(images, boxes, "bilinear"), enlarge(labels[:, None].float(), boxes, "nearest")[:, 0].long()

    def _worsened(self, images: Tensor, generator: torch.Generator) -> Tensor:
        order = torch.rand(len(images), 3, generator=generator).argsort(dim=1).to(images.device)
        images = images.gather(1, order[:, :, None, None].expand_as(images))
        images = jittered(images, self.jitter, generator)
        share = (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1).clamp_min(0).to(images)
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        noise = torch.randn(images.shape, generator=generator).to(images)
        return torch.lerp(images, blurred, share) + self.noise * noise


def zoom_box(mask: Tensor, factor: float) -> tuple[float, float, float]:
    """The square inside the picture around a mask (H, W), ``factor`` times its longer side.

    Returns (top, left, side) as shares of the height and the width.
    """
    sides = []
    for dim in (1, 0):
        inside = mask.any(dim=dim).nonzero()[:, 0]
        sides.append((float(inside[0]) / mask.shape[1 - dim], float(inside[-1] + 1) / mask.shape[1 - dim]))
    side = min(1.0, factor * max(end - start for start, end in sides))
    top, left = (min(max((start + end - side) / 2, 0.0), 1 - side) for start, end in sides)
    return top, left, side


def enlarge(images: Tensor, boxes: Tensor, mode: str) -> Tensor:
    """Squares of images (B, C, H, W) at the images' size; boxes (B, 3) as ``zoom_box`` gives them; mode: of the sampling."""
    top, left, side = boxes.to(images).unbind(dim=1)
    zero = torch.zeros_like(side)
    rows = torch.stack([zero, side, 2 * top + side - 1], dim=1)
    columns = torch.stack([side, zero, 2 * left + side - 1], dim=1)
    grid = F.affine_grid(torch.stack([columns, rows], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
