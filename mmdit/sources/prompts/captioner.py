"""Captions and entities by an image-to-text model or a multimodal language model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mmdit.errors import UserError
from mmdit.sources.labelling.network import FrozenNetwork, load_processor, load_transformers
from mmdit.sources.labelling.source import ModelSource
from mmdit.sources.prompts.lookup import one_text, parse_entities

CAPTIONERS: Collection[str] = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
CAPTION = "Describe this image in one sentence. Name what is in it, with its attributes."
ENTITIES = (
    "This is a caption of the image: {caption}\nList the things that the caption names and the image shows, in the caption's "
    "own words, one per line. Write nothing else."
)
_CONTROL = re.compile(r"[<>\[\]|{}]")  # what marks control tokens: a caption is text


class Captioner(FrozenNetwork):
    """A model that writes about images.

    Models with a chat template are asked; others (BLIP, GIT) caption and can't list entities. Answers are greedy. Images
    of a batch are asked about together, because one by one takes many times as long; sums are then rounded otherwise, so a
    word may now and then depend on the batch.

    Args:
        source: where the weights are.
        dtype: that it runs in.
        max_new_tokens: of an answer.
    """

    def __init__(self, source: ModelSource, dtype: str, max_new_tokens: int) -> None:
        super().__init__(source, dtype)
        self.model = load_transformers(AutoModelForImageTextToText, source, self.dtype)
        self.processor = load_processor(AutoProcessor, source)
        self.max_new_tokens = max_new_tokens
        self.chats = bool(getattr(self.processor, "chat_template", None))
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None:
            raise UserError(f"{source.name}: its folder has no tokenizer")
        tokenizer.padding_side = "left"  # an answer begins where its question ends
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def facts(self) -> Mapping[str, Any]:
        return {"max_new_tokens": self.max_new_tokens}

    def refuse_without_chat(self) -> None:
        """Raise UserError for a model that captions and can't be asked for entities."""
        if not self.chats:
            raise UserError(
                f"--captioner {self.source.name!r}: has no chat template, so it can't be asked what a caption names: give "
                "a multimodal language model"
            )

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        """Describe images (H, W, 3) uint8, each in one line; "" where the model wrote nothing."""
        return [one_text(answer) for answer in self._ask(images, [CAPTION] * len(images))]

    def entities(self, images: Sequence[np.ndarray], captions: Sequence[str], most: int) -> list[list[str]]:
        """List what captions name, ``most`` each; for a model that chats."""
        questions = [ENTITIES.format(caption=_CONTROL.sub(" ", caption)) for caption in captions]
        return [parse_entities(answer, most) for answer in self._ask(images, questions)]

    @torch.no_grad()
    def _ask(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        if not images:
            return []
        if self.chats:
            texts = [self._chat(question) for question in questions]
            nested = [[image] for image in images]
            encoded = self.processor(images=nested, text=texts, padding=True, return_tensors="pt")
        else:
            encoded = self.processor(images=list(images), return_tensors="pt")
        inputs = encoded.to(self.device, self.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        if "input_ids" in inputs and not self.model.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    def _chat(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
