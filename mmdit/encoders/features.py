"""Frozen patch features of RGB for the alignment loss (REPA, arXiv 2410.06940)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.encoders.saved_network import CONFIG_NAME, WEIGHTS_NAME
from mmdit.encoders.scene_teacher import CLASS_NAME, SceneTeacher
from mmdit.encoders.timm_folder import load_timm_folder
from mmdit.errors import UserError, first_line
from mmdit.storage.json_object import read_object
from mmdit.storage.weights import refuse_non_finite

DEFAULT_TEACHER = "vit_base_patch14_dinov2"


class FeatureTeacher(nn.Module):
    """A frozen timm ViT. Its input is resized so that its patch grid is the transformer's token grid.

    (A 256-pixel image becomes 224 for DINOv2's patches of 14: 16 x 16 patches, the tokens of a patch-2 transformer.)

    Args:
        model: a timm ViT built with ``num_classes=0`` for the image size ``grid x patch_size``.
        name: what latents.json records.
        grid: (rows, columns) of tokens.
        mean, std: of the model's normalisation, RGB in [0, 1].
    """

    def __init__(
        self,
        model: Any,
        name: str,
        grid: tuple[int, int],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.name, self.grid = name, grid
        self.model = model.eval().requires_grad_(False)
        patch = model.patch_embed.patch_size
        self.image_size = (grid[0] * patch[0], grid[1] * patch[1])
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def features(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> patch tokens (B, T, D) in row-major order, no class or register tokens."""
        parameter = next(self.model.parameters())
        images = (images.to(parameter.device).float() + 1) / 2
        images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        images = ((images - self.mean) / self.std).to(parameter.dtype)
        return self.model.forward_features(images)[:, self.model.num_prefix_tokens :]


def pooled(network: nn.Module, images: Tensor) -> Tensor:
    """One feature vector per RGB image (B, 3, H, W) in [-1, 1], (B, D): the network's own pooling, or the mean over tokens."""
    if hasattr(network, "pooled"):
        return network.pooled(images)  # type: ignore[operator]
    return network.features(images).mean(dim=1)  # type: ignore[operator]


def load_teacher(name_or_folder: str, grid: tuple[int, int]) -> FeatureTeacher | SceneTeacher:
    """Load a frozen teacher.

    Args:
        name_or_folder: a folder with ``config.json`` and ``model.safetensors``, of a ``SceneTeacher`` or a timm model
            as the Hub stores it; or the name of a timm model whose pretrained weights are fetched from the Hub.
        grid: (rows, columns) of the transformer's tokens.

    Raises:
        UserError: an unknown name, an incomplete folder, weights that can't be fetched, or another grid of tokens.
    """
    folder = Path(name_or_folder)
    if (folder / CONFIG_NAME).is_file():
        return _from_folder(folder, grid)
    if folder.is_dir() or name_or_folder.startswith((".", "/")):
        raise UserError(f"{folder}: a teacher's folder needs {CONFIG_NAME} and {WEIGHTS_NAME}")
    if not timm.is_model(name_or_folder.split(".")[0]):
        raise UserError(
            f"teacher {name_or_folder!r} is neither a folder nor a timm model; the default is {DEFAULT_TEACHER!r}"
        )
    try:
        return _timm_teacher(name_or_folder, name_or_folder, grid)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the weights of teacher {name_or_folder!r} can't be fetched from the Hub ({first_line(error)}): connect once, or "
            f"put {CONFIG_NAME} and {WEIGHTS_NAME} of timm/{name_or_folder} into a folder and give its path"
        ) from None


def _timm_teacher(architecture: str, name: str, grid: tuple[int, int]) -> FeatureTeacher:
    # The patch size is the architecture's; one look at it gives the image size to build for.
    with torch.device("meta"):
        patch = timm.create_model(architecture, pretrained=False, num_classes=0).patch_embed.patch_size
    size = (grid[0] * patch[0], grid[1] * patch[1])
    return _teacher(timm.create_model(architecture, pretrained=True, num_classes=0, img_size=size), name, grid)


def _teacher(model: Any, name: str, grid: tuple[int, int]) -> FeatureTeacher:
    refuse_non_finite(model, f"teacher {name!r}")
    config = model.pretrained_cfg
    return FeatureTeacher(model, name, grid, tuple(config["mean"]), tuple(config["std"]))


def _from_folder(folder: Path, grid: tuple[int, int]) -> FeatureTeacher | SceneTeacher:
    config = read_object(folder / CONFIG_NAME)
    if config.get("_class_name") == CLASS_NAME:
        scene_teacher = SceneTeacher.from_pretrained(folder)
        side = scene_teacher.config["image_size"] // scene_teacher.patch_size
        if grid != (side, side):
            raise UserError(
                f"{folder}: this teacher gives {side} x {side} tokens, the transformer has {grid[0]} x {grid[1]}"
            )
        return scene_teacher
    model = load_timm_folder(folder, lambda patch: (grid[0] * patch[0], grid[1] * patch[1]))
    architecture = config["architecture"]
    return _teacher(model, architecture, grid)
