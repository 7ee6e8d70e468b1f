"""A small ViT trained on the scenes: patch features for the alignment loss, pooled ones for the Fréchet distance.

It learns what an RGB image shows (category, labels and normals of every pixel), as DINOv2 did for photographs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmdit.encoders.saved_network import SavedNetwork

CLASS_NAME = "SceneTeacher"


class SceneTeacher(SavedNetwork):
    """A timm ``VisionTransformer`` with linear heads. Shapes: B images, T = (image_size / patch_size)^2, D width.

    Args:
        num_categories: of the main object.
        num_labels: segmentation classes, in the order of the codec's palette.
        image_size, patch_size, hidden_size, depth, num_heads: of the ViT.
    """

    name = "scene_teacher"
    what = "scene teacher"

    def __init__(
        self,
        num_categories: int,
        num_labels: int,
        image_size: int = 64,
        *,
        patch_size: int = 8,
        hidden_size: int = 160,
        depth: int = 5,
        num_heads: int = 5,
    ) -> None:
        super().__init__()
        self.config = {
            "num_categories": num_categories,
            "num_labels": num_labels,
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": hidden_size,
            "depth": depth,
            "num_heads": num_heads,
        }
        self.vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=hidden_size,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            class_token=False,
            global_pool="avg",
        )
        self.category_head = nn.Linear(hidden_size, num_categories)
        self.label_head = nn.Linear(hidden_size, num_labels * patch_size**2)
        self.normal_head = nn.Linear(hidden_size, 3 * patch_size**2)
        self.patch_size = patch_size

    def features(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> normalised patch tokens (B, T, D), in row-major order."""
        parameter = self.category_head.weight
        return self.vit.forward_features(images.to(parameter.device, parameter.dtype))

    def pooled(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> mean of the patch tokens (B, D)."""
        return self.features(images).mean(dim=1)

    def classify(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> logits of the main object's category (B, num_categories)."""
        return self.category_head(self.pooled(images))

    def dense(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, T, D) -> label logits (B, num_labels, H, W) and unnormalised normals (B, 3, H, W)."""
        grid = self.config["image_size"] // self.patch_size
        maps = []
        for head in (self.label_head, self.normal_head):
            patches = head(tokens).transpose(1, 2).unflatten(2, (grid, grid))  # (B, channels * p * p, g, g)
            maps.append(F.pixel_shuffle(patches, self.patch_size))
        return maps[0], maps[1]


class SceneTeacherObjective:
    """Category, label and normal losses of a ``SceneTeacher``.

    The batch: ``images`` (B, 3, H, W) RGB in [-1, 1]; ``categories`` (B,) int64, -1 = unknown; ``labels`` (B, H, W)
    rows of the palette (``SegmentationCodec.logits(encoded).argmax(1)``); ``normals`` (B, 3, H, W) unit, 0 = none.
    Mirrored images come from the dataset; brightness and contrast are jittered here.
    """

    def __init__(
        self,
        category_weight: float = 0.5,
        label_weight: float = 1.0,
        normal_weight: float = 1.0,
        background_labels: Sequence[int] = (0, 1),
        background_weight: float = 0.25,
        jitter: float = 0.2,
    ) -> None:
        self.category_weight, self.label_weight, self.normal_weight = category_weight, label_weight, normal_weight
        self.background_labels, self.background_weight, self.jitter = (
            tuple(background_labels),
            background_weight,
            jitter,
        )

    def __call__(
        self,
        teacher: SceneTeacher,
        images: Tensor,
        *,
        categories: Tensor,
        labels: Tensor,
        normals: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor | tuple[Tensor, int]]:
        """Return "loss" and its parts "label", "normal", "category", and "category_accuracy", these with their images."""
        tokens = teacher.features(jittered(images, self.jitter, generator))
        category_logits = teacher.category_head(tokens.mean(dim=1))
        label_logits, vectors = teacher.dense(tokens)
        weight = torch.ones(label_logits.shape[1], device=labels.device)
        weight[list(self.background_labels)] = self.background_weight
        known = categories >= 0
        some = bool(known.any())
        category = F.cross_entropy(category_logits, categories, ignore_index=-1) if some else category_logits.sum() * 0
        label = F.cross_entropy(label_logits, labels, weight=weight)
        valid = (normals.norm(dim=1) > 0.5) * weight[labels]
        normal = ((1 - F.cosine_similarity(vectors, normals, dim=1, eps=1e-4)) * valid).sum() / valid.sum().clamp_min(1)
        loss = self.category_weight * category + self.label_weight * label + self.normal_weight * normal
        right = (category_logits.argmax(dim=1) == categories)[known].float()
        parts = {"label": label.detach(), "normal": normal.detach()}
        known_parts = {"category": (category.detach(), len(right)), "category_accuracy": (right.mean(), len(right))}
        return {"loss": loss, **parts, **known_parts}


def jittered(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with contrast and brightness changed by up to ``amount``, one draw each."""
    draw = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images) * 2 - 1
    return ((1 + amount * draw[0]) * images + amount * draw[1]).clamp(-1, 1)
