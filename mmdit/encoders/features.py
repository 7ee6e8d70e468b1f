"""Frozen patch features of RGB for the alignment loss (REPA, arXiv 2410.06940)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmdit.encoders.scene_teacher import CLASS_NAME, CONFIG_NAME, WEIGHTS_NAME, SceneTeacher
from mmdit.errors import UserError, first_line
from mmdit.storage.json_object import JsonObject, read_object

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

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> patch tokens (B, T, D) in row-major order, no class or register tokens."""
        parameter = next(self.model.parameters())
        images = (images.to(parameter.device).float() + 1) / 2
        images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        images = ((images - self.mean) / self.std).to(parameter.dtype)
        return self.model.forward_features(images)[:, self.model.num_prefix_tokens :]


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
        with torch.device("meta"):
            size = _image_size(timm.create_model(name_or_folder, num_classes=0), grid)
        model = timm.create_model(name_or_folder, pretrained=True, num_classes=0, img_size=size)
        return _teacher(model, name_or_folder, grid)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the weights of teacher {name_or_folder!r} can't be fetched from the Hub ({first_line(error)}): connect once, or "
            f"put {CONFIG_NAME} and {WEIGHTS_NAME} of timm/{name_or_folder} into a folder and give its path"
        ) from None


def _from_folder(folder: Path, grid: tuple[int, int]) -> FeatureTeacher | SceneTeacher:
    config = read_object(folder / CONFIG_NAME)
    if config.get("_class_name") != CLASS_NAME:
        architecture, settings = _architecture(config)
        with torch.device("meta"):  # a look at the patch size
            size = _image_size(_build(architecture, settings, config.where), grid)
        return _teacher(timm_from_folder(folder, size), architecture, grid)
    scene_teacher = SceneTeacher.from_pretrained(folder)
    side = scene_teacher.config["image_size"] // scene_teacher.patch_size
    if grid != (side, side):
        raise UserError(
            f"{folder}: this teacher gives {side} x {side} tokens, the transformer has {grid[0]} x {grid[1]}"
        )
    return scene_teacher


def _teacher(model: Any, name: str, grid: tuple[int, int]) -> FeatureTeacher:
    config = model.pretrained_cfg
    return FeatureTeacher(model, name, grid, tuple(config["mean"]), tuple(config["std"]))


def _image_size(model: Any, grid: tuple[int, int]) -> tuple[int, int]:
    patch = model.patch_embed.patch_size
    return grid[0] * patch[0], grid[1] * patch[1]


def timm_from_folder(folder: Path, image_size: int | tuple[int, int]) -> Any:
    """Build a timm ViT without its head from a folder with ``config.json`` and ``model.safetensors``, as the Hub stores it.

    (timm's own ``local-dir:`` leaves weights that the file lacks as they were drawn, and says nothing, where the head is left
    out; and reads pickles where the safetensors file is missing.)

    Raises:
        UserError: an unknown architecture, or weights that are missing, damaged, or another architecture's.
    """
    config, weights = read_object(folder / CONFIG_NAME), folder / WEIGHTS_NAME
    architecture, settings = _architecture(config)
    model = _build(architecture, settings, config.where, img_size=image_size)
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: missing or damaged weights: {first_line(error)}") from None
    found = timm.models.vision_transformer.checkpoint_filter_fn(state, model)
    wanted = model.state_dict().keys()
    missing = sorted(wanted - found.keys())
    if missing:
        raise UserError(f"{weights}: lacks {len(missing)} weights of {architecture}, first {missing[0]!r}")
    try:
        model.load_state_dict({key: found[key] for key in wanted})
    except RuntimeError as error:
        raise UserError(f"{weights}: not the weights of {architecture}: {first_line(error)}") from None
    own = config.object("pretrained_cfg", {})
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        **{key: own.list_of(key, float) for key in ("mean", "std") if key in own},
    }
    return model


def _build(architecture: str, settings: Mapping[str, Any], where: str, **options: Any) -> Any:
    try:
        return timm.create_model(architecture, **{**settings, "pretrained": False, "num_classes": 0, **options})
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError) as error:
        raise UserError(f"{where}: {architecture} can't be built so: {first_line(error)}") from None


def _architecture(config: JsonObject) -> tuple[str, dict[str, Any]]:
    """The name of a timm model, and the numbers and switches by which this one differs from it."""
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{config.where}: 'architecture' is {architecture!r}, not a timm model")
    settings = config.object("model_args", {})
    for name, value in settings.items():  # timm would load files that text here names
        if not isinstance(value, int | float):
            raise UserError(f"{settings.where}: {name!r} is {value!r}: give a number, true or false")
    return architecture, dict(settings)
