"""The pipeline's part that reads prompts: its optional components, and the methods that take prompts without a call."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch

from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.flow.guidance import Guidance
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.labels import resolve_labels
from mmdit.pipelines.loading import OPTIONAL
from mmdit.pipelines.prompts import (
    Branches,
    Words,
    check_labels,
    encoder_of,
    fusing_scale_of,
    make_branches,
    read_prompts,
)

# Tokenizers of transformers can't be set up by two threads at once, and several pipelines may share one.
_READING = threading.RLock()


class PromptsMixin:
    """Base of ``MultimodalDiTPipeline``, which has the other components."""

    transformer: MultimodalDiT
    text_encoder: Any
    image_encoder: Any
    _id2label: dict[int, str]
    _execution_device: torch.device
    _encoder: tuple[FrozenPromptEncoder | None, tuple[Any, ...]] | None = None

    @property
    def components(self) -> dict[str, Any]:
        """Name -> component, those that there are."""
        names = ("transformer", "vae", "scheduler", *OPTIONAL)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def register_optional(self, **parts: Any) -> None:
        """Set the components that a model may lack; those that are None get no entry in the index of a folder.

        So the folder of a model without prompts is as it was before there were any, and older versions read it.
        """
        for name in parts:
            setattr(self, name, None)
        self.register_modules(**{name: part for name, part in parts.items() if part is not None})  # type: ignore[attr-defined]

    def prompt_encoder(self) -> FrozenPromptEncoder | None:
        """What encodes prompts, built once; None = the conditioner reads them itself.

        Raises:
            UserError: components that are missing or don't fit.
        """
        parts = tuple(getattr(self, name) for name in OPTIONAL)
        if self._encoder is None or any(a is not b for a, b in zip(parts, self._encoder[1], strict=True)):
            self._encoder = encoder_of(self.transformer, self.components), parts
        return self._encoder[0]

    def check_prompt(
        self,
        prompt: Any,
        subjects: Any = None,
        negative_prompt: Any = None,
        *,
        class_labels: Any = None,
        fusing_scale: float | None = None,
    ) -> None:
        """Raise the UserError that a call with these arguments would, without running a network."""
        words = self._read_words(class_labels, prompt, subjects, negative_prompt)
        words.count()
        check_labels(words, self._id2label)
        Guidance(fusing_scale=fusing_scale_of(self.transformer.conditioner, fusing_scale))
        if words.has_prompts:
            with _READING:
                self._check_encodable(words)

    def _read_words(self, class_labels: Any, prompt: Any, subjects: Any, negative_prompt: Any) -> Words:
        config = self.transformer.config
        labels = resolve_labels(class_labels, config.num_classes, self._id2label)
        return read_prompts(config.conditioner, labels, prompt, subjects, negative_prompt)

    def _check_encodable(self, words: Words) -> None:
        encoder = self.prompt_encoder()
        if encoder is None:  # the conditioner's own judgement
            for prompts in (words.prompts, words.negative):
                if prompts is not None:
                    self.transformer.conditioner.of_inputs([None] * len(prompts), prompts)
        else:
            encoder.check([*(words.prompts or ()), *(words.negative or ())])

    def fusing_scale(self, given: float | None = None) -> float | None:
        """α that a call uses for the one it is given; None = its prompts are not fused. Raises UserError as a call."""
        alpha = fusing_scale_of(self.transformer.conditioner, given)
        return alpha if self.transformer.conditioner.fuses_subjects else None

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Any,
        subjects: Any = None,
        negative_prompt: Any = None,
        *,
        class_labels: Any = None,
        num_images: int = 1,
    ) -> Branches:
        """Encode prompts and labels as a call does.

        Returns:
            The ``Conditioning`` of the whole prompts, of their text alone (None = they have no images), and of no prompt or
            the negative one, each of N ``num_images`` samples.

        Raises:
            UserError: as in a call.
        """
        words = self._read_words(class_labels, prompt, subjects, negative_prompt)
        batch = words.count()
        check_labels(words, self._id2label)
        return self._make_branches(words.repeat(batch, num_images))

    def _make_branches(self, words: Words) -> Branches:
        with _READING if words.has_prompts else nullcontext():
            encoder = self.prompt_encoder() if words.has_prompts else None
            return make_branches(self.transformer.conditioner, encoder, words, self._execution_device)
