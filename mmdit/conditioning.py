"""What the transformer is told besides the latents: conditioning is data, whatever kind of prompt it came from.

B samples, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.errors import UserError

NO_SUBJECT = -1


@dataclass(frozen=True)
class Conditioning:
    """The prompt as tensors. A pytree, so ``torch.compile`` and ``torch.export`` see its tensors.

    Args:
        vector: (B, D), added to the timestep and role embeddings.
        tokens: (B, L, D) for blocks with cross-attention, or None. A class label has none.
        token_mask: (B, L) bool, True = attend, or None = attend to all.
        subject_ids: (B, L) int64, the subject that a token belongs to, -1 = none; None = no token belongs to one.
    """

    vector: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    subject_ids: Tensor | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Move every tensor to ``device``, and those of floating point to ``dtype``; None = as they are."""

        def move(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device, dtype if part.is_floating_point() else None)

        return Conditioning(
            self.vector.to(device, dtype), move(self.tokens), move(self.token_mask), move(self.subject_ids)
        )

    def rows(self, index: slice | Tensor) -> Conditioning:
        """Those samples alone; what one row says for all, (1, D), stays."""

        def part(value: Any) -> Any:
            return value[index] if isinstance(value, Tensor) and len(value) > 1 else value

        return type(self)(**{field.name: part(getattr(self, field.name)) for field in fields(self)})

    def differs_from(self, null: Conditioning) -> Tensor:
        """(B,) bool, whose prompt says more than ``null`` does: another vector, or tokens that are attended to."""
        different = (self.vector != null.vector).any(-1)
        if self.tokens is None:
            return different
        if self.token_mask is None:
            return torch.ones_like(different)
        return different | self.token_mask.any(-1)


torch.export.register_dataclass(Conditioning, serialized_type_name="mmdit.conditioning.Conditioning")


def concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Join along the batch. Tokens are padded to one length L, and padding is masked; a prompt without tokens is all padding."""
    lengths = {0 if each.tokens is None else each.tokens.shape[1] for each in conditionings}
    if lengths == {0}:
        return Conditioning(torch.cat([each.vector for each in conditionings]))
    if len(lengths) > 1:
        conditionings = [_padded(each, max(lengths), conditionings) for each in conditionings]
    elif any(each.token_mask is not None for each in conditionings):
        conditionings = [_with_mask(each) for each in conditionings]
    if any(each.subject_ids is not None for each in conditionings):
        conditionings = [_with_subjects(each) for each in conditionings]
    parts: dict[str, Any] = {}
    for field in fields(Conditioning):
        values = [getattr(each, field.name) for each in conditionings]
        parts[field.name] = None if values[0] is None else torch.cat(values)
    return Conditioning(**parts)


def _padded(one: Conditioning, length: int, among: Sequence[Conditioning]) -> Conditioning:
    if one.tokens is None:
        like = next(each.tokens for each in among if each.tokens is not None)
        tokens = like.new_zeros(len(one.vector), 0, like.shape[-1])
        one = Conditioning(one.vector, tokens, tokens.new_zeros(tokens.shape[:2], dtype=torch.bool))
    one = _with_mask(one)
    assert one.tokens is not None
    assert one.token_mask is not None
    rest = length - one.tokens.shape[1]
    subjects = None if one.subject_ids is None else F.pad(one.subject_ids, (0, rest), value=NO_SUBJECT)
    return Conditioning(one.vector, F.pad(one.tokens, (0, 0, 0, rest)), F.pad(one.token_mask, (0, rest)), subjects)


def _with_mask(one: Conditioning) -> Conditioning:
    if one.tokens is None or one.token_mask is not None:
        return one
    mask = torch.ones(one.tokens.shape[:2], dtype=torch.bool, device=one.tokens.device)
    return Conditioning(one.vector, one.tokens, mask, one.subject_ids)


def _with_subjects(one: Conditioning) -> Conditioning:
    if one.tokens is None or one.subject_ids is not None:
        return one
    subjects = torch.full(one.tokens.shape[:2], NO_SUBJECT, device=one.tokens.device)
    return Conditioning(one.vector, one.tokens, one.token_mask, subjects)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as frozen encoders give them: the input of a conditioner with trained weights.

    Args:
        states: (B, L, W), the text encoder's states of the pure text, not pooled (h_y of UMM-Diffusion, arXiv 2303.09319).
        mask: (B, L) bool, False = padding.
        subjects: (B, L) int64, the subject whose word a token belongs to, counted over the batch; ``NO_SUBJECT`` = text.
        subject_embeddings: (S, P), an image embedding of each subject.
        restate: (S, W) pseudo-word embeddings -> states (B, L, W) with them in place of the subjects' words (h_r).
        present: (B,) bool, False = the sample has no prompt.
    """

    states: Tensor
    mask: Tensor
    subjects: Tensor
    subject_embeddings: Tensor
    restate: Callable[[Tensor], Tensor]
    present: Tensor

    def text_only(self, rows: Tensor | None = None) -> EncodedPrompts:
        """The same words without the subjects' images, in ``rows`` (B,) bool, None = all."""
        chosen = torch.ones_like(self.present) if rows is None else rows.to(self.present.device)
        return replace(self, subjects=self.subjects.masked_fill(chosen[:, None], NO_SUBJECT))

    def without(self, rows: Tensor) -> EncodedPrompts:
        """No prompt at all in ``rows`` (B,) bool."""
        return replace(self, present=self.present & ~rows.to(self.present.device))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EncodedPrompts:
        """Move every tensor, and what ``restate`` returns, to ``device``; those of floating point to ``dtype``."""
        restate = self.restate

        def move(part: Any) -> Any:
            return part.to(device, dtype if part.is_floating_point() else None) if isinstance(part, Tensor) else part

        moved = {field.name: move(getattr(self, field.name)) for field in fields(self)}
        return replace(self, **{**moved, "restate": lambda words: restate(words).to(device, dtype)})

    def repeat(self, count: int) -> EncodedPrompts:
        """Each prompt ``count`` times, next to each other; subjects are not encoded again."""
        restate = self.restate
        rows = {
            name: getattr(self, name).repeat_interleave(count, 0) for name in ("states", "mask", "subjects", "present")
        }
        return replace(self, **rows, restate=lambda words: restate(words).repeat_interleave(count, 0))


class Conditioner(nn.Module, ABC):
    """Turns one kind of prompt into ``Conditioning``; a submodule of the transformer, so it is saved with it.

    A new kind is one subclass and one entry in ``mmdit.models.conditioners.CONDITIONERS``. The transformer builds it with
    ``num_classes``, ``hidden_size``, ``dropout_prob`` and, by name, what its config has in ``conditioner_settings``.
    """

    # Whether subjects' images can be left out of its prompts, and the two predictions fused (``mmdit.flow.guidance``).
    fuses_subjects: ClassVar[bool] = False
    dropout_prob: float = 0.0

    @abstractmethod
    def forward(self, prompt: Any) -> Conditioning:
        """Encode a batch of prompts, in the form that ``of_batch`` and ``of_inputs`` give them. Never random."""

    @abstractmethod
    def null(self, batch_size: int) -> Conditioning:
        """The conditioning of "no prompt", for classifier-free guidance."""

    @abstractmethod
    def without(self, prompt: Any, rows: Tensor) -> Any:
        """Take the prompt away in the ``rows`` (B,) that are True: there ``forward`` gives what ``null`` does."""

    @abstractmethod
    def of_batch(self, batch: Mapping[str, Any]) -> Any:
        """The prompts of a training batch, with class ids (B,) under "category", -1 = none."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the initial weights."""

    def drop(self, prompt: Any, draw: Tensor) -> Any:
        """Take the prompt away where ``draw`` (B,), uniform in [0, 1), is below the dropout."""
        return self.without(prompt, draw < self.dropout_prob)

    def of_inputs(self, class_labels: Sequence[int | None], prompts: Sequence[Any] | None) -> Any:
        """The prompts of a pipeline's call: class ids, None = none, and what its argument ``prompt`` holds for each.

        Raises UserError for prompts: conditioners that read them override this.
        """
        if prompts is not None:
            raise UserError("this model takes no prompt: give class_labels, or a model whose conditioner reads prompts")
        return class_labels

    def start_from(self, trained: Conditioner) -> None:
        """Take over the weights of a trained conditioner that have the same name and shape here."""
        own = self.state_dict()
        fitting = {k: v for k, v in trained.state_dict().items() if k in own and own[k].shape == v.shape}
        self.load_state_dict(fitting, strict=False)
