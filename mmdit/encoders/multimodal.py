"""A frozen multimodal LLM as the encoder of prompts (UNIMO-G, arXiv 2401.13388, section 2.1).

A subject's image stands in the sequence in place of the words it stands for, as the segments do in UNIMO-G's prompts, so a word
that is marked need not be one that the LLM knows. The states of the whole sequence, words and images, are the prompt.

B prompts, L tokens, W width of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmdit.conditioning import NO_SUBJECT, EncodedPrompts
from mmdit.encoders.hidden_layer import note_layer
from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.encoders.subjects import check_subjects, subject_image
from mmdit.encoders.text import (
    refuse_marks,
    refuse_no_words,
    refuse_unknown_words,
    short,
    weights_device,
    without_unknown_punctuation,
)
from mmdit.errors import UserError
from mmdit.prompt import Prompt, Span


class MultimodalEncoder(FrozenPromptEncoder):
    """A frozen multimodal LLM with its processor, called as ``PromptEncoder`` is.

    Works with models of transformers that read images as tokens of one sequence: LLaVA, Idefics3 and SmolVLM, Qwen-VL.
    Sequences are padded on the right and the LLM is causal, so a prompt's states depend neither on padding nor on others.
    A subject is shown to it whole: the splitting of large images into many, which Idefics3 does to read documents, is off.

    Args:
        model: with ``image_token_id`` in its config; with or without a language-model head.
        processor: the model's own.
        max_subjects: the most images in one prompt.
        hidden_layer: whose states are taken, see ``note_layer``.

    Raises:
        UserError: a model that doesn't read images so, or a layer that it doesn't have.
    """

    required = ("text_encoder", "processor")

    def __init__(self, model: Any, processor: Any, max_subjects: int = 4, hidden_layer: int | None = None) -> None:
        super().__init__()
        image_token = getattr(model.config, "image_token_id", None)
        if image_token is None or not hasattr(processor, "image_processor"):
            raise UserError(
                f"{type(model).__name__} with {type(processor).__name__} reads no images as tokens of its text: give a model "
                "of the kinds of LLaVA, Idefics3, SmolVLM or Qwen-VL, and its processor"
            )
        if getattr(processor.image_processor, "do_image_splitting", False):
            processor.image_processor.do_image_splitting = False
        self.model = model.eval().requires_grad_(False)
        self.processor, self.max_subjects = processor, max_subjects
        self.hidden_layer = note_layer(model, hidden_layer)
        self._image_token = int(image_token)
        self._lengths: dict[tuple[int, int], int] = {}

    @classmethod
    def of_components(cls, components: Mapping[str, Any]) -> MultimodalEncoder:
        """Build from ``text_encoder`` and ``processor``."""
        return cls(components["text_encoder"], components["processor"])

    @classmethod
    def load(
        cls, text_encoder: str, image_encoder: str | None = None, hidden_layer: int | None = None
    ) -> MultimodalEncoder:
        """Load a multimodal LLM by folder or Hub id: any of transformers that reads images and text.

        Weights that are saved in bfloat16 stay so, as those of large LLMs are; others are loaded in float32.

        Raises:
            UserError: no such folder, an unreachable Hub, a model of another kind, or an image encoder beside it.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if image_encoder is not None:
            raise UserError(f"image_encoder is {image_encoder!r}: a multimodal LLM reads images itself, leave it out")
        source = PretrainedFolder.find(text_encoder, "multimodal LLM")
        saved = source.config.get("dtype", source.config.get("torch_dtype"))
        dtype = torch.bfloat16 if saved == "bfloat16" else torch.float32
        model = source.load_model(AutoModelForImageTextToText, dtype)
        return cls(model, source.load(AutoProcessor), hidden_layer=hidden_layer)

    @property
    def components(self) -> dict[str, Any]:
        """What a pipeline is built with."""
        return {"text_encoder": self.model, "processor": self.processor}

    @property
    def widths(self) -> dict[str, int]:
        """Settings of the conditioner: W."""
        return {"text_width": self.width}

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

    def read(self, prompts: Sequence[Prompt | None]) -> dict[str, Any]:
        """ "present" (B,) bool and "groups", prompts with images and those without: rows, the subjects (L,) of each one's tokens,
        the model's inputs, and what characters of the text each token stands for, (L, 2).

        Raises UserError for a prompt too long (it names the words that would be lost), a word that the tokenizer doesn't know (it
        names the nearest), a mark of the model's own in the text, too many images, or something other than one.
        """
        present = torch.tensor([prompt is not None for prompt in prompts])
        return {"present": present, "groups": self._prepared(prompts)}

    @torch.no_grad()
    def encode(self, read: Mapping[str, Any]) -> EncodedPrompts:
        """Encode what ``read`` gave.

        ``subjects`` of the result tells which tokens are those of an image, and of whose: subjects are counted over the batch,
        prompt by prompt. Words belong to none.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}  # row -> states (L, W) and subjects (L,)
        for rows, subjects, inputs, _ in read["groups"]:
            states = self._states(inputs)
            kept = inputs["attention_mask"].bool().to(states.device)
            for i, row in enumerate(rows):
                found[row] = states[i][kept[i]], subjects[i].to(states.device)
        device, dtype = weights_device(self.model), next(self.model.parameters()).dtype
        if found:
            device = next(iter(found.values()))[0].device
        # One token of padding at least: without any, blocks leave weights out that distributed training waits for.
        count, length = len(read["present"]), max((len(own) for own, _ in found.values()), default=1)
        padded = torch.zeros(count, length, self.width, device=device, dtype=dtype)
        mask = torch.zeros(count, length, device=device, dtype=torch.bool)
        whose = torch.full((count, length), NO_SUBJECT, device=device)
        for row, (own, numbers) in found.items():
            padded[row, : len(own)], mask[row, : len(own)], whose[row, : len(own)] = own, True, numbers
        present = read["present"].to(device)
        return EncodedPrompts(padded, mask, whose, padded.new_zeros(0, 1), lambda _: padded, present)

    def locate(self, mentions: Sequence[Prompt | None], read: Mapping[str, Any]) -> Tensor:
        """The mention that each token belongs to: of an image's tokens the one whose words it stands in place of."""
        if not self.processor.tokenizer.is_fast:
            raise UserError(
                "the multimodal LLM's tokenizer does not say which words its tokens come from: give subjects instead"
            )
        places = {row: one for rows, _, _, found in read["groups"] for row, one in zip(rows, found, strict=True)}
        length = max((len(one) for one in places.values()), default=1)
        numbers, first = torch.full((len(mentions), length), NO_SUBJECT), 0
        for row, prompt in enumerate(mentions):
            for span in () if prompt is None else prompt.spans:
                starts, ends = places[row].unbind(1)
                numbers[row, : len(starts)][(starts < span.end) & (ends > span.start)] = first + span.subject
            first += 0 if prompt is None else 1 + max((span.subject for span in prompt.spans), default=-1)
        return numbers

    def _states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The states (B, L, W) of the layer."""
        device, dtype = weights_device(self.model), next(self.model.parameters()).dtype
        moved = {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
        has_head = self.model.base_model is not self.model
        head = {"logits_to_keep": 1} if has_head else {}  # nobody reads the logits
        output = self.model(**moved, **head, use_cache=False, output_hidden_states=True, return_dict=True)
        return output.hidden_states[self.hidden_layer]

    def _prepared(
        self, prompts: Sequence[Prompt | None]
    ) -> list[tuple[list[int], list[Tensor], dict[str, Tensor], list[Tensor]]]:
        """The groups of ``read``."""
        check_subjects(prompts, self.max_subjects)
        first, groups = 0, {True: [], False: []}  # type: ignore[var-annotated]
        for row, prompt in enumerate(prompts):
            if prompt is not None:
                self._check_words(prompt)
                groups[bool(prompt.images)].append((row, prompt, first))
                first += len(prompt.images) or 1 + max((span.subject for span in prompt.spans), default=-1)
        prepared = []
        for group in filter(None, groups.values()):
            pictures = [
                [subject_image(prompt.images[span.subject]) for span in _shown(prompt)] for _, prompt, _ in group
            ]
            inputs = self._inputs([self._interleaved(prompt) for _, prompt, _ in group], pictures)
            subjects, places = [], []
            for i, (_, prompt, start) in enumerate(group):
                ids = inputs["input_ids"][i][inputs["attention_mask"][i].bool()]
                self._check_length(prompt, ids)
                numbers = torch.tensor([start + span.subject for span in _shown(prompt)], dtype=torch.long)
                lengths = torch.tensor([self._length(picture) for picture in pictures[i]], dtype=torch.long)
                whose = torch.full_like(ids, NO_SUBJECT)
                whose[ids == self._image_token] = numbers.repeat_interleave(lengths)
                subjects.append(whose)
                shown = torch.tensor([(span.start, span.end) for span in _shown(prompt)], dtype=torch.long).reshape(
                    -1, 2
                )
                of_images = shown.repeat_interleave(lengths, 0)
                places.append(_places(ids, self._words(prompt), ids == self._image_token, of_images))
            prepared.append(([row for row, _, _ in group], subjects, inputs, places))
        return prepared

    def _inputs(self, texts: list[str], pictures: list[list[Image.Image]]) -> dict[str, Tensor]:
        images = {"images": pictures} if any(pictures) else {}
        return dict(self.processor(text=texts, **images, padding=True, padding_side="right", return_tensors="pt"))

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
        return self._mark().join(self._pieces(prompt))

    def _pieces(self, prompt: Prompt) -> list[str]:
        """The text before, between and behind the words that images replace, as the tokenizer knows it."""
        ends = [0, *(span.end for span in _shown(prompt))]
        starts = [*(span.start for span in _shown(prompt)), len(prompt.text)]
        pieces = [prompt.text[end:start] for end, start in zip(ends, starts, strict=True)]
        tokenizer = self.processor.tokenizer
        return [without_unknown_punctuation(tokenizer, piece) for piece in pieces] if tokenizer.is_fast else pieces

    def _words(self, prompt: Prompt) -> list[_Word]:
        """The tokens of a prompt's words in order, read beside the marks as the model's own are; of a slow tokenizer none."""
        tokenizer, pieces, mark = self.processor.tokenizer, self._pieces(prompt), self._mark()
        if not tokenizer.is_fast:
            return []
        encoded = tokenizer(mark.join(pieces), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        words: list[_Word] = []
        begin = 0  # of a piece in what was read
        for piece, own in zip(pieces, [0, *(span.end for span in _shown(prompt))], strict=True):
            for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                if begin <= start < end <= begin + len(piece):
                    words.append((token, own + start - begin, own + end - begin))
            begin += len(piece) + len(mark)
        return words

    def _check_words(self, prompt: Prompt) -> None:
        tokenizer = self.processor.tokenizer
        refuse_marks([*tokenizer.all_special_tokens, tokenizer.convert_ids_to_tokens(self._image_token)], prompt.text)
        if tokenizer.is_fast:
            pieces = self._pieces(prompt)
            if not prompt.images:
                refuse_no_words(prompt.text, *pieces)
            for piece in pieces:
                encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                refuse_unknown_words(tokenizer, piece, encoded["input_ids"], encoded["offset_mapping"])

    def _check_length(self, prompt: Prompt, ids: Tensor) -> None:
        if len(ids) > self.max_length:
            words = self.processor.tokenizer.decode(ids[self.max_length :], skip_special_tokens=True).strip()
            lost = repr(short(words)) if words else "the end"
            raise UserError(
                f"prompt {short(prompt.text)!r} has {len(ids)} tokens with its images, the model reads {self.max_length}: "
                f"{lost} would be lost; make it shorter, or give fewer or smaller images"
            )


_Word = tuple[int, int, int]  # id of a token, and the characters of the prompt's text that it stands for


def _places(ids: Tensor, words: Sequence[_Word], is_image: Tensor, of_images: Tensor) -> Tensor:
    """The characters that each token (L,) stands for, (L, 2): ``of_images`` for those of images, (0, 0) for marks.

    The words are met in order between the marks; where one isn't, it and those behind it stay unknown.
    """
    found, count = [(0, 0)] * len(ids), 0
    for number, token in enumerate(ids.tolist()):
        if count < len(words) and token == words[count][0]:
            found[number], count = words[count][1:], count + 1
    places = torch.tensor(found)
    places[is_image] = of_images
    return places


def _shown(prompt: Prompt) -> Sequence[Span]:
    """The spans whose words an image replaces: all, where there are images."""
    return prompt.spans if prompt.images else ()
