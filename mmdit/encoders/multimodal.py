"""A frozen multimodal LLM as the encoder of prompts (UNIMO-G, arXiv 2401.13388, section 2.1).

A subject's image stands in the sequence in place of the words it stands for, as the segments do in UNIMO-G's prompts, so a word
that is marked need not be one that the LLM knows. The states of the whole sequence, words and images, are the prompt.

B prompts, L tokens, W width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmdit.conditioning import NO_SUBJECT, EncodedPrompts
from mmdit.encoders.prompts import check_subjects, subject_image
from mmdit.encoders.text import refuse_unknown_words, short
from mmdit.errors import UserError, first_line
from mmdit.hub import out_of_reach
from mmdit.prompt import Prompt


class MultimodalEncoder(nn.Module):
    """A frozen multimodal LLM with its processor, called as ``PromptEncoder`` is.

    Works with models of transformers that read images as tokens of one sequence: LLaVA, Idefics3 and SmolVLM, Qwen-VL.
    Sequences are padded on the right and the LLM is causal, so a prompt's states depend neither on padding nor on others.

    Args:
        model: with ``image_token_id`` in its config; with or without a language-model head.
        processor: the model's own.
        max_subjects: the most images in one prompt.
        hidden_layer: whose states are taken, in ``hidden_states`` of the model: 0 = embeddings, -1 = the last, behind its norm.

    Raises:
        UserError: a model that doesn't read images so, or a layer that it doesn't have.
    """

    def __init__(self, model: Any, processor: Any, max_subjects: int = 4, hidden_layer: int = -1) -> None:
        super().__init__()
        image_token = getattr(model.config, "image_token_id", None)
        if image_token is None or not hasattr(processor, "image_processor"):
            raise UserError(
                f"{type(model).__name__} reads no images as tokens of its text: give a model of the kinds of LLaVA, "
                "Idefics3, SmolVLM or Qwen-VL, with its processor"
            )
        layers = int(model.config.get_text_config().num_hidden_layers)
        if not -layers - 1 <= hidden_layer <= layers:
            raise UserError(
                f"hidden_layer is {hidden_layer}: the model has {layers} layers, give {-layers - 1} to {layers}"
            )
        self.model = model.eval().requires_grad_(False)
        self.processor, self.max_subjects, self.hidden_layer = processor, max_subjects, hidden_layer
        self._image_token = int(image_token)
        self._last = hidden_layer in (-1, layers)
        self._lengths: dict[tuple[int, int], int] = {}

    @property
    def width(self) -> int:
        """W."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt, those of its images included."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        most = int(self.processor.tokenizer.model_max_length)
        return most if positions is None else min(most, int(positions))

    @torch.no_grad()
    def forward(self, prompts: Sequence[Prompt | None]) -> EncodedPrompts:
        """Encode prompts; None = a sample without one.

        ``subjects`` of the result tells which tokens are those of an image, and of whose: subjects are counted over the batch,
        prompt by prompt. Words belong to none.

        Raises:
            UserError: a prompt too long (it names the words that would be lost), a word that the tokenizer doesn't know (it
                names the nearest), a mark of the model's own in the text, too many images, or something other than one.
        """
        check_subjects(prompts, self.max_subjects)
        first = 0
        rows: dict[bool, list[tuple[int, Prompt, int]]] = {False: [], True: []}  # by whether there are images
        for row, prompt in enumerate(prompts):
            if prompt is not None:
                self._check_words(prompt)
                rows[bool(prompt.images)].append((row, prompt, first))
                first += len(prompt.images) or 1 + max((span.subject for span in prompt.spans), default=-1)
        parameter = next(self.model.parameters())
        read: dict[int, tuple[Tensor, Tensor]] = {}
        for group in rows.values():
            if group:
                encoded = self._read([prompt for _, prompt, _ in group], [start for _, _, start in group])
                read |= {row: one for (row, _, _), one in zip(group, encoded, strict=True)}
        length = max((len(states) for states, _ in read.values()), default=0)
        states = parameter.new_zeros(len(prompts), length, self.width)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool, device=parameter.device)
        subjects = torch.full(states.shape[:2], NO_SUBJECT, device=parameter.device)
        for row, (own, whose) in read.items():
            states[row, : len(own)], mask[row, : len(own)], subjects[row, : len(own)] = own, True, whose
        present = torch.tensor([prompt is not None for prompt in prompts], device=parameter.device)
        return EncodedPrompts(states, mask, subjects, states.new_zeros(0, 1), lambda _: states, present)

    def _read(self, prompts: list[Prompt], starts: list[int]) -> list[tuple[Tensor, Tensor]]:
        """States (L, W) and subjects (L,) of each prompt; all of them have images, or none has."""
        pictures = [[subject_image(prompt.images[span.subject]) for span in _shown(prompt)] for prompt in prompts]
        inputs = self._inputs([self._interleaved(prompt) for prompt in prompts], pictures)
        kept = inputs["attention_mask"].bool()
        for prompt, ids, real in zip(prompts, inputs["input_ids"], kept, strict=True):
            self._check_length(prompt, ids[real])
        # Models of this kind have the network without its head under "model".
        output = self.model.base_model(**inputs, use_cache=False, output_hidden_states=not self._last, return_dict=True)
        states = output.last_hidden_state if self._last else output.hidden_states[self.hidden_layer]
        found = []
        for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
            ids = inputs["input_ids"][row][kept[row]]
            lengths = [self._length(picture) for picture in pictures[row]]
            numbers = [start + span.subject for span in _shown(prompt)]
            whose = torch.full_like(ids, NO_SUBJECT)
            whose[ids == self._image_token] = torch.tensor(numbers, dtype=ids.dtype).repeat_interleave(
                torch.tensor(lengths, dtype=torch.long)
            ).to(ids)  # fmt: skip
            found.append((states[row][kept[row]], whose))
        return found

    def _inputs(self, texts: list[str], pictures: list[list[Image.Image]]) -> dict[str, Any]:
        images = {"images": pictures} if any(pictures) else {}
        made = self.processor(text=texts, **images, padding=True, padding_side="right", return_tensors="pt")
        parameter = next(self.model.parameters())
        return {
            key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for key, value in made.items()
        }

    def _length(self, picture: Image.Image) -> int:
        """How many tokens the processor makes of a picture, which follows from its size."""
        if picture.size not in self._lengths:
            ids = self._inputs([self._mark()], [[picture]])["input_ids"]
            self._lengths[picture.size] = int((ids == self._image_token).sum())
        return self._lengths[picture.size]

    def _mark(self) -> str:
        """What the processor replaces by the tokens of an image; Qwen-VL wants it between two more."""
        config = self.model.config
        ends = (getattr(config, "vision_start_token_id", None), getattr(config, "vision_end_token_id", None))
        ids = [self._image_token] if None in ends else [ends[0], self._image_token, ends[1]]
        return "".join(self.processor.tokenizer.convert_ids_to_tokens(ids))

    def _interleaved(self, prompt: Prompt) -> str:
        parts, end = [], 0
        for span in _shown(prompt):
            parts += [prompt.text[end : span.start], self._mark()]
            end = span.end
        return "".join([*parts, prompt.text[end:]])

    def _check_words(self, prompt: Prompt) -> None:
        tokenizer, end = self.processor.tokenizer, 0
        for mark in (*tokenizer.all_special_tokens, tokenizer.convert_ids_to_tokens(self._image_token)):
            if mark in prompt.text:
                raise UserError(f"prompt {short(prompt.text)!r}: {mark!r} is a mark of the model's own: leave it out")
        pieces = []
        for span in _shown(prompt):
            pieces.append(prompt.text[end : span.start])
            end = span.end
        for piece in [*pieces, prompt.text[end:]]:
            encoded = tokenizer(
                piece, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
            )
            if tokenizer.is_fast:
                refuse_unknown_words(tokenizer, piece, encoded["input_ids"], encoded["offset_mapping"])

    def _check_length(self, prompt: Prompt, ids: Tensor) -> None:
        if len(ids) > self.max_length:
            words = self.processor.tokenizer.decode(ids[self.max_length :], skip_special_tokens=True).strip()
            lost = f"{short(words)!r}" if words else "the end"
            raise UserError(
                f"prompt {short(prompt.text)!r} has {len(ids)} tokens with its images, the model reads {self.max_length}: "
                f"{lost} would be lost; make it shorter, or give fewer or smaller images"
            )


def _shown(prompt: Prompt) -> Sequence[Any]:
    """The spans whose words an image replaces: all, where there are images."""
    return prompt.spans if prompt.images else ()


def load_multimodal_encoder(name_or_folder: str, *, max_subjects: int = 4, hidden_layer: int = -1) -> MultimodalEncoder:
    """Load a multimodal LLM by folder or Hub id: any of transformers that reads images and text.

    Nothing in the folder is run, and weights are read from safetensors only.

    Raises:
        UserError: no such folder, an unreachable Hub, or a model of another kind.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    offline = not Path(name_or_folder).is_dir() and out_of_reach(name_or_folder)
    safe = {"trust_remote_code": False, "local_files_only": offline}
    try:
        model = AutoModelForImageTextToText.from_pretrained(name_or_folder, use_safetensors=True, **safe)
        processor = AutoProcessor.from_pretrained(name_or_folder, **safe)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        where = "the Hub can't be reached, and it is not in the cache" if offline else first_line(error)
        raise UserError(
            f"multimodal LLM {name_or_folder!r} can't be loaded ({where}): give a folder or a Hub id"
        ) from error
    return MultimodalEncoder(model, processor, max_subjects, hidden_layer)
