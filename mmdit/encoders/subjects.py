"""Pictures of subjects -> embeddings, by a frozen image encoder. S subjects, P width of the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.encoders.text import weights_device
from mmdit.errors import UserError
from mmdit.modalities.rgb import RGBCodec, on_white
from mmdit.prompt import Prompt

MAX_RATIO = 100  # of the sides; processors bring the shorter one to their size, and the longer one grows with it


class SubjectEncoder(nn.Module):
    """A frozen image encoder: CLIP's image tower with its projection, and its processor.

    Args:
        model: ``CLIPVisionModelWithProjection`` or another model with ``image_embeds``.
        processor: its image processor of transformers.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.processor = processor

    @property
    def width(self) -> int:
        """P."""
        return int(self.model.config.projection_dim)

    def read(self, images: Sequence[Any]) -> Tensor:
        """The model's input, (S, 3, H, W), of subjects, each a PIL image or a pair (image, mask), True = subject.

        Raises:
            UserError: something other than an image, or a mask of another size.
        """
        if not images:
            return torch.zeros(0)
        pictures = [_enlarged(subject_image(image)) for image in images]
        return self.processor(images=pictures, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Embed what ``read`` gave: -> (S, P)."""
        dtype, device = next(self.model.parameters()).dtype, weights_device(self.model)
        if len(pixels) == 0:
            return torch.zeros(0, self.width, device=device, dtype=dtype)
        return self.model(pixel_values=pixels.to(device, dtype)).image_embeds

    def forward(self, images: Sequence[Any]) -> Tensor:
        """Embed subjects: -> (S, P). Raises UserError as ``read``."""
        return self.encode(self.read(images))


def check_subjects(prompts: Sequence[Prompt | None], most: int) -> None:
    """Raise a UserError where a prompt has more than ``most`` images."""
    for prompt in prompts:
        if prompt is not None and len(prompt.images) > most:
            taken = f"{most}: leave some out" if most else "none: give text alone"
            raise UserError(f"a prompt has {len(prompt.images)} subjects, the model takes {taken}")


def subject_image(subject: Any) -> Image.Image:
    """The RGB picture of a subject, read as ``conditions={"rgb": image}`` is; a mask (H, W) leaves white around it.

    Any mode of PIL: 16-bit grey is scaled, transparency is laid over white, and EXIF's orientation is applied; a mask is of
    the picture as it is seen.

    Raises:
        UserError: something other than an image, one that is a mere stripe, or a mask that is empty or of another size.
    """
    image, mask = subject if isinstance(subject, tuple) and len(subject) == 2 else (subject, None)
    if not isinstance(image, Image.Image):
        raise UserError(f"a subject is a {type(image).__name__}: give a PIL image, or (image, mask)")
    try:
        pixels = RGBCodec().read(image).values  # (H, W, 3) uint8
    except UserError as error:
        raise UserError(f"a subject's image can't be read: {error}") from None
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_RATIO * min(height, width):
        raise UserError(
            f"a subject's image is {width} x {height} pixels: give one whose longer side is at most {MAX_RATIO} times the shorter"
        )
    if mask is None:
        return Image.fromarray(pixels)
    kept = _read_mask(mask)
    if kept.shape != pixels.shape[:2]:
        size = f"{pixels.shape[0]} x {pixels.shape[1]}"
        raise UserError(f"a subject's mask has shape {kept.shape}, its image is {size}: give one of the same size")
    if not kept.any():
        raise UserError("a subject's mask is empty: mark the subject with True or 1")
    return Image.fromarray(on_white(pixels, kept))


def _enlarged(picture: Image.Image) -> Image.Image:
    """A picture of which no side can be taken for its channels: processors warn of sides up to 3, and may mix them up."""
    if min(picture.size) > 3:
        return picture
    return picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.NEAREST)


def _read_mask(mask: Any) -> np.ndarray:
    """A mask as bool, of any shape: True, or above 0."""
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        mask = mask.float().numpy() if mask.is_floating_point() else mask.numpy()
    try:
        values = np.asarray(mask)
        return values if values.dtype == bool else values > 0
    except (TypeError, ValueError):
        raise UserError(
            f"a subject's mask is a {type(mask).__name__} without numbers: give an array, a tensor or a PIL image, 1 = subject"
        ) from None


def load_image_encoder(name_or_folder: str) -> SubjectEncoder:
    """Load CLIP's image tower with its projection, by folder or Hub id; the folder may be of a whole CLIP model.

    Nothing in the folder is run, and weights are read from safetensors only.

    Raises:
        UserError: no such folder, an unreachable Hub, or another model than CLIP.
    """
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    source = PretrainedFolder.find(name_or_folder, "image encoder")
    kind = source.config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise UserError(f"{source.title} is a {kind!r}: give a CLIP model or its image tower")
    return SubjectEncoder(source.load_model(CLIPVisionModelWithProjection), source.load(AutoImageProcessor))
