"""Prompts -> the input of a conditioner: the frozen encoders of text and subjects, and which conditioner has which.

B prompts, L tokens, W width of the text encoder, S subjects of the batch, P width of the image embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdit.conditioning import NO_SUBJECT, EncodedPrompts
from mmdit.encoders.multimodal import MultimodalEncoder
from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.encoders.subjects import SubjectEncoder, check_subjects, load_image_encoder, subject_image
from mmdit.encoders.text import TextEncoder, Tokens, load_text_encoder
from mmdit.errors import UserError, unknown_name
from mmdit.prompt import Prompt

__all__ = [
    "PROMPT_ENCODERS",
    "MultimodalEncoder",
    "PromptEncoder",
    "SubjectEncoder",
    "load_prompt_encoder",
    "make_prompt_encoder",
    "subject_image",
]


class PromptEncoder(FrozenPromptEncoder):
    """The frozen encoders of text and subjects, apart (UMM-Diffusion).

    Args:
        text: the text encoder.
        subjects: the image encoder; None = prompts without images only.
        max_subjects: the most images in one prompt.
    """

    required: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    optional: ClassVar[tuple[str, ...]] = ("image_encoder", "image_processor")

    def __init__(self, text: TextEncoder, subjects: SubjectEncoder | None = None, max_subjects: int = 4) -> None:
        super().__init__()
        self.text, self.subjects, self.max_subjects = text, subjects, max_subjects

    @classmethod
    def of_components(cls, components: Mapping[str, Any]) -> PromptEncoder:
        """Build from ``text_encoder`` and ``tokenizer``, and for subjects ``image_encoder`` and ``image_processor``.

        Raises:
            UserError: one of the latter without the other, or a tokenizer that is no fast one.
        """
        text = TextEncoder(components["text_encoder"], components["tokenizer"])
        given = [name for name in cls.optional if components.get(name) is not None]
        if len(given) == 1:
            lacking = next(name for name in cls.optional if name not in given)
            raise UserError(f"{given[0]} is given without {lacking}: give both, or neither for prompts of text alone")
        subjects = SubjectEncoder(*(components[name] for name in cls.optional)) if given else None
        return cls(text, subjects)

    @classmethod
    def load(
        cls, text_encoder: str, image_encoder: str | None = None, hidden_layer: int | None = None
    ) -> PromptEncoder:
        """Load a text encoder and CLIP's image tower, by folders or Hub ids.

        One folder of a whole CLIP model serves both: without ``image_encoder`` its image tower is that of ``text_encoder``,
        and where that has none, prompts are of text alone.
        """
        text = load_text_encoder(text_encoder, hidden_layer)
        if image_encoder is None and "vision_config" not in PretrainedFolder.find(text_encoder, "text encoder").config:
            return cls(text)
        return cls(text, load_image_encoder(image_encoder or text_encoder))

    @property
    def components(self) -> dict[str, Any]:
        """What a pipeline is built with."""
        found = {"text_encoder": self.text.model, "tokenizer": self.text.tokenizer}
        if self.subjects is not None:
            found |= {"image_encoder": self.subjects.model, "image_processor": self.subjects.processor}
        return found

    @property
    def widths(self) -> dict[str, int]:
        """Settings of the conditioner: W and P."""
        text = {"text_width": self.text.width}
        return text if self.subjects is None else {**text, "image_width": self.subjects.width}

    def _images(self, prompts: Sequence[Prompt | None]) -> list[Any]:
        check_subjects(prompts, self.max_subjects)
        images = [image for prompt in prompts if prompt is not None for image in prompt.images]
        if images and self.subjects is None:
            raise UserError("this model takes no subjects' images: give text alone")
        return images

    def locate(self, mentions: Sequence[Prompt | None], read: Mapping[str, Tensor]) -> Tensor:
        """The mention that each token belongs to, by the tokenizer's offsets. Images change no token's place."""
        return self.text.tokenize([prompt or Prompt("") for prompt in mentions]).subjects

    def read(self, prompts: Sequence[Prompt | None]) -> dict[str, Tensor]:
        """``Tokens`` by field, "pixels" (S, 3, H, W) of the subjects' images, "present" (B,) bool.

        Raises UserError for images without an image encoder, too many, unreadable ones, or what the tokenizer refuses.
        """
        images = self._images(prompts)
        tokens = self.text.tokenize([prompt or Prompt("") for prompt in prompts])
        present = torch.tensor([prompt is not None for prompt in prompts])
        pixels = torch.zeros(0) if self.subjects is None else self.subjects.read(images)
        return {**vars(tokens), "pixels": pixels, "present": present}

    def encode(self, read: Mapping[str, Tensor]) -> EncodedPrompts:
        """Encode what ``read`` gave."""
        tokens = Tokens(read["ids"], read["mask"], read["subjects"])
        states = self.text(tokens).states
        embeddings = states.new_zeros(0, 1) if self.subjects is None else self.subjects.encode(read["pixels"])
        text = self.text

        def restate(words: Tensor) -> Tensor:
            return text(tokens, words).states

        subjects = tokens.subjects if len(embeddings) else torch.full_like(tokens.subjects, NO_SUBJECT)
        encoded = EncodedPrompts(states, tokens.mask, subjects, embeddings, restate, read["present"])
        return encoded.to(states.device, states.dtype)


# conditioner -> what encodes its prompts. Conditioners that are not here read what ``pipe(prompt=...)`` is given themselves.
PROMPT_ENCODERS: dict[str, type[FrozenPromptEncoder]] = {"tiue": PromptEncoder, "interleaved": MultimodalEncoder}


def make_prompt_encoder(conditioner: str, components: Mapping[str, Any]) -> FrozenPromptEncoder:
    """Build the encoder of a conditioner's prompts from a pipeline's components, name -> component or None.

    Raises:
        UserError: components that are missing; the message names them.
    """
    kind = PROMPT_ENCODERS[conditioner]
    missing = [name for name in kind.required if components.get(name) is None]
    if missing:
        listed, plural = " and ".join(missing), "s" if len(missing) > 1 else ""
        arguments = ", ".join(f"{name}=..." for name in missing)
        raise UserError(
            f"this model has no {listed}, which its prompts need: give the component{plural}, from_pretrained(..., "
            f"{arguments}), or a folder that holds them"
        )
    return kind.of_components(components)


def load_prompt_encoder(
    conditioner: str, text_encoder: str, image_encoder: str | None = None, hidden_layer: int | None = None
) -> FrozenPromptEncoder:
    """Load the encoder of a conditioner's prompts by folders or Hub ids, such as "openai/clip-vit-large-patch14".

    Args:
        conditioner: name in ``PROMPT_ENCODERS``.
        text_encoder: see ``load_text_encoder``; for a multimodal LLM, the LLM.
        image_encoder: CLIP; None = that of ``text_encoder`` where it is a whole CLIP model.
        hidden_layer: whose states are the prompt, see ``mmdit.encoders.hidden_layer.note_layer``.

    Raises:
        UserError: a conditioner without an encoder, or encoders that can't be loaded.
    """
    if conditioner not in PROMPT_ENCODERS:
        raise unknown_name("conditioner with prompts", conditioner, PROMPT_ENCODERS)
    return PROMPT_ENCODERS[conditioner].load(text_encoder, image_encoder, hidden_layer)
