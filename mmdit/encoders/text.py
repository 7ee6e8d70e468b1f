"""Frozen text encoders of transformers, and pseudo-words put among their words.

Shapes: B prompts, L tokens, W width of the encoder, S subjects in all prompts of a batch together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.conditioning import NO_SUBJECT
from mmdit.encoders.hidden_layer import note_layer
from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.errors import UserError, nearest_names
from mmdit.prompt import Prompt

# Per thread, so that threads can share one encoder: (S, W) vectors, and which of them stands at each token (B, L).
_pseudo_words: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("pseudo_words", default=None)


@dataclass(frozen=True)
class Tokens:
    """Prompts as token ids.

    Args:
        ids: (B, L) int64.
        mask: (B, L) bool, False = padding.
        subjects: (B, L) int64, number of the subject whose word the token belongs to, counted over the whole batch;
            ``NO_SUBJECT`` = text.
    """

    ids: Tensor
    mask: Tensor
    subjects: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """Move every tensor."""
        return Tokens(self.ids.to(device), self.mask.to(device), self.subjects.to(device))


@dataclass(frozen=True)
class TextStates:
    """What a text encoder makes of prompts: ``states`` (B, L, W), not pooled, and ``pooled`` (B, W)."""

    states: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """A frozen text encoder with its tokenizer: CLIP's text tower, or an encoder of the kinds of T5 and BERT.

    Args:
        model: takes ``input_ids`` and ``attention_mask``, returns ``last_hidden_state``.
        tokenizer: a fast tokenizer of transformers; characters are matched to tokens by its offsets.
        hidden_layer: whose states are taken, see ``note_layer``.

    Raises:
        UserError: a tokenizer that doesn't know where its tokens come from, or a layer that the model doesn't have.
    """

    def __init__(self, model: Any, tokenizer: Any, hidden_layer: int | None = None) -> None:
        super().__init__()
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"tokenizer {type(tokenizer).__name__} is not a fast one: its tokens have no positions in the text"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.hidden_layer = note_layer(model, hidden_layer)
        self._reads_last = self.hidden_layer in (-1, model.config.num_hidden_layers)
        table = self.model.get_input_embeddings().weight
        for module in self.model.modules():  # T5 looks words up in another module with the same table
            is_table = isinstance(module, nn.Embedding) and module.weight is table
            if is_table and _put_pseudo_words not in module._forward_hooks.values():
                module.register_forward_hook(_put_pseudo_words)

    @property
    def width(self) -> int:
        """W."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def max_length(self) -> int:
        """The most tokens a prompt may have, with those that the tokenizer adds."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        return min(int(self.tokenizer.model_max_length), int(positions))

    def tokenize(self, prompts: Sequence[Prompt]) -> Tokens:
        """Turn prompts into tokens, padded to the longest of them.

        All tokens of a marked word belong to its subject; subjects are counted over the batch, prompt by prompt.

        Raises:
            UserError: a prompt that is too long (it names the words that would be lost), a word that the tokenizer doesn't
                know (it names the nearest that it does), a mark of the tokenizer's own, or a marked word that no token covers.
        """
        encoded = self.tokenizer(
            [self._read(prompt.text) for prompt in prompts],
            padding=True,
            return_offsets_mapping=True,
            return_tensors="pt",
            verbose=False,
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        offsets = encoded["offset_mapping"].tolist()  # [B][L] of (start, end); (0, 0) for special tokens
        subjects = torch.full_like(ids, NO_SUBJECT)
        first = 0
        for row, prompt in enumerate(prompts):
            self._check(prompt, ids[row], mask[row], offsets[row])
            for span in prompt.spans:
                inside = [i for i, (start, end) in enumerate(offsets[row]) if start < span.end and end > span.start]
                if not inside:
                    word = prompt.text[span.start : span.end]
                    raise UserError(
                        f"prompt {prompt.text!r}: the text encoder has no token for {word!r}: mark another word"
                    )
                subjects[row, inside] = first + span.subject
            first += len(prompt.images) or 1 + max((span.subject for span in prompt.spans), default=-1)
        return Tokens(ids, mask, subjects)

    def _read(self, text: str) -> str:
        refuse_marks(self.tokenizer.all_special_tokens, text)
        known = without_unknown_punctuation(self.tokenizer, text)
        refuse_no_words(text, known)
        return known

    def _check(self, prompt: Prompt, ids: Tensor, mask: Tensor, offsets: list[list[int]]) -> None:
        count = int(mask.sum())
        if count > self.max_length:
            real = [span for span, kept in zip(offsets, mask.tolist(), strict=True) if kept and span[1] > span[0]]
            lost = prompt.text[real[len(real) - (count - self.max_length)][0] :]
            raise UserError(
                f"prompt {short(prompt.text)!r} has {count} tokens, the text encoder reads {self.max_length}: {short(lost)!r} "
                "would be lost; make it shorter"
            )
        refuse_unknown_words(self.tokenizer, prompt.text, ids.tolist(), offsets)

    def forward(self, tokens: Tokens, words: Tensor | None = None) -> TextStates:
        """Encode.

        Args:
            tokens: from ``tokenize``.
            words: (S, W), the pseudo-word embedding of each subject, put in place of its tokens' own; gradients flow to
                them through the frozen encoder (UMM-Diffusion, arXiv 2303.09319, section 3.2). None = the words themselves.
        """
        tokens = tokens.to(weights_device(self.model))
        with torch.set_grad_enabled(words is not None and torch.is_grad_enabled()), _putting(words, tokens.subjects):
            output = self.model(
                input_ids=tokens.ids,
                attention_mask=tokens.mask.long(),
                output_hidden_states=not self._reads_last,
            )
        states = output.last_hidden_state if self._reads_last else output.hidden_states[self.hidden_layer]
        pooled = (
            getattr(output, "pooler_output", None) if self.model.config.model_type in _POOLED_BY_THE_MODEL else None
        )
        return TextStates(states, _mean(states, tokens.mask.to(states.device)) if pooled is None else pooled)


# Pooled by the model as it was trained to (CLIP: the state at the end of the text); the others by the mean of their states.
_POOLED_BY_THE_MODEL = ("clip", "clip_text_model")


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


@contextmanager
def _putting(words: Tensor | None, subjects: Tensor) -> Iterator[None]:
    token = _pseudo_words.set(None if words is None else (words, subjects))
    try:
        yield
    finally:
        _pseudo_words.reset(token)


def _put_pseudo_words(module: nn.Module, arguments: Any, embeddings: Tensor) -> Tensor | None:
    put = _pseudo_words.get()
    if put is None:
        return None
    words, subjects = put
    if len(words) == 0:
        return None
    words, subjects = words.to(embeddings), subjects.to(embeddings.device)
    return torch.where((subjects >= 0)[..., None], words[subjects.clamp_min(0)], embeddings)


def weights_device(module: nn.Module) -> torch.device:
    """Where a module's inputs go. Weights that are offloaded to nowhere ("meta") have a hook that moves the inputs."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


# What prompts are punctuated with, words apart.
_PUNCTUATION = frozenset(".,;:!?…-–—()\"'`´“”„‘’‚«»")
_MAX_WORD = 80  # characters of a word in a message, and that others are compared with


def without_unknown_punctuation(tokenizer: Any, text: str) -> str:
    """Put blanks in place of the punctuation marks that a fast tokenizer doesn't know; characters keep their positions.

    A tokenizer of the words of captions knows no mark that no caption has, and "a red torus." asks for nothing else than
    "a red torus".
    """
    unknown = _unknown_token(tokenizer)
    if unknown is None or _PUNCTUATION.isdisjoint(text):
        return text
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    known = text
    for token, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
        if token == unknown and _PUNCTUATION.issuperset(text[start:end].strip()):
            known = known[:start] + " " * (end - start) + known[end:]
    return known


def refuse_no_words(text: str, known: str) -> None:
    """Raise a UserError for a text of which nothing is ``known``; one that is empty is no prompt at all, and passes."""
    if text.strip() and not known.strip():
        raise UserError(f"prompt {short(text)!r} has no words: give some, such as 'a red torus left of a blue cone'")


def refuse_marks(marks: Iterable[str], text: str) -> None:
    """Raise a UserError for a text that holds one of the tokenizer's own marks, such as that of the end: it would be obeyed."""
    for mark in marks:
        if mark in text:
            raise UserError(f"prompt {short(text)!r}: {mark!r} is a mark of the model's own: leave it out")


def _unknown_token(tokenizer: Any) -> int | None:
    """The id of words that a tokenizer doesn't know; None where it knows all, by their bytes."""
    unknown = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id) else unknown


def refuse_unknown_words(tokenizer: Any, text: str, ids: Sequence[int], offsets: Sequence[Sequence[int]]) -> None:
    """Raise a UserError for the first word of ``text`` that the tokenizer doesn't know; it names the nearest that it does.

    Args:
        tokenizer: a fast tokenizer.
        text: what it read.
        ids: what it made of that.
        offsets: (start, end) of each token in the text; equal for those that it added.
    """
    unknown = _unknown_token(tokenizer)
    if unknown is None:
        return
    for token, (start, end) in zip(ids, offsets, strict=True):
        if token == unknown and end > start:
            word = short(text[start:end].strip(), _MAX_WORD)
            known = sorted({w for piece in tokenizer.get_vocab() if (w := piece.removeprefix("▁")).isalpha()})
            nearest = ", ".join(nearest_names(word.lower(), known))
            raise UserError(f"prompt {short(text)!r}: the text encoder doesn't know {word!r}; nearest are {nearest}")


def short(text: str, most: int = 60) -> str:
    """A text for a message: its beginning, where it is long."""
    return text if len(text) <= most else text[: most - 3] + "…"


def load_text_encoder(name_or_folder: str, hidden_layer: int | None = None) -> TextEncoder:
    """Load a text encoder by folder or Hub id: CLIP (its text tower), or any encoder that transformers has for text.

    Nothing in the folder is run, and weights are read from safetensors only.

    Raises:
        UserError: no such folder, an unreachable Hub, a model other than a text encoder, or a layer that it doesn't have.
    """
    from transformers import AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel

    source = PretrainedFolder.find(name_or_folder, "text encoder")
    is_clip = source.config.get("model_type") in _POOLED_BY_THE_MODEL
    model = source.load_model(CLIPTextModel if is_clip else AutoModelForTextEncoding)
    return TextEncoder(model, source.load(AutoTokenizer), hidden_layer)
