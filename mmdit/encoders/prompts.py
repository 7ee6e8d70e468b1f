"""Prompts -> the input of a conditioner: the frozen text and image encoders, together.

B prompts, L tokens, W width of the text encoder, S subjects of the batch, P width of the image embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmdit.conditioning import NO_SUBJECT, EncodedPrompts
from mmdit.encoders.text import TextEncoder
from mmdit.errors import UserError
from mmdit.prompt import Prompt

BACKGROUND = 255  # what a mask takes away of a subject's picture becomes white


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

    @torch.no_grad()
    def forward(self, images: Sequence[Any]) -> Tensor:
        """Embed subjects, each a PIL image or a pair (image, mask), True = subject: -> (S, P).

        Raises:
            UserError: something other than an image, or a mask of another size.
        """
        parameter = next(self.model.parameters())
        if not images:
            return torch.zeros(0, self.width, device=parameter.device, dtype=parameter.dtype)
        pictures = [subject_image(image) for image in images]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return self.model(pixel_values=pixels.to(parameter.device, parameter.dtype)).image_embeds


def subject_image(subject: Any) -> Image.Image:
    """The RGB picture of a subject; a mask (H, W) leaves white around it.

    Raises:
        UserError: something other than an image, or a mask that is empty or of another size.
    """
    image, mask = subject if isinstance(subject, tuple) and len(subject) == 2 else (subject, None)
    if not isinstance(image, Image.Image):
        raise UserError(f"a subject is a {type(image).__name__}: give a PIL image, or (image, mask)")
    image = image.convert("RGB")
    if mask is None:
        return image
    kept = np.asarray(mask)
    kept = kept if kept.dtype == bool else kept > 0
    if kept.shape != (image.height, image.width):
        size = f"{image.height} x {image.width}"
        raise UserError(f"a subject's mask has shape {kept.shape}, its image is {size}: give one of the same size")
    if not kept.any():
        raise UserError("a subject's mask is empty: mark the subject with True or 1")
    return Image.fromarray(np.where(kept[..., None], np.asarray(image), BACKGROUND).astype(np.uint8))


def check_subjects(prompts: Sequence[Prompt | None], most: int) -> None:
    """Raise a UserError where a prompt has more than ``most`` images."""
    for prompt in prompts:
        if prompt is not None and len(prompt.images) > most:
            raise UserError(f"a prompt has {len(prompt.images)} subjects, the model takes {most}: leave some out")


class PromptEncoder(nn.Module):
    """The frozen encoders of text and subjects.

    Args:
        text: the text encoder.
        subjects: the image encoder; None = prompts without images only.
        max_subjects: the most images in one prompt.
    """

    def __init__(self, text: TextEncoder, subjects: SubjectEncoder | None = None, max_subjects: int = 4) -> None:
        super().__init__()
        self.text, self.subjects, self.max_subjects = text, subjects, max_subjects

    def forward(self, prompts: Sequence[Prompt | None]) -> EncodedPrompts:
        """Encode prompts; None = a sample without one.

        Raises:
            UserError: what ``TextEncoder.tokenize`` refuses, images for a model without an image encoder, or too many.
        """
        images = [image for prompt in prompts if prompt is not None for image in prompt.images]
        check_subjects(prompts, self.max_subjects)
        if images and self.subjects is None:
            raise UserError("this model takes no subjects' images: give text alone")
        device = next(self.text.model.parameters()).device
        tokens = self.text.tokenize([prompt or Prompt("") for prompt in prompts]).to(device)
        present = torch.tensor([prompt is not None for prompt in prompts], device=device)
        states = self.text(tokens).states
        embeddings = self.subjects(images) if self.subjects is not None else states.new_zeros(0, 1)
        text = self.text

        def restate(words: Tensor) -> Tensor:
            return text(tokens, words).states

        subjects = tokens.subjects if images else torch.full_like(tokens.subjects, NO_SUBJECT)
        return EncodedPrompts(states, tokens.mask, subjects, embeddings.to(states), restate, present)
