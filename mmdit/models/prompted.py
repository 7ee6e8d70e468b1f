"""What conditioners of encoded prompts share: a class label in the vector, the prompt's states as tokens.

B samples, L tokens of the prompt, W width of the encoder's states, D of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.conditioning import NO_SUBJECT, Conditioning, EncodedPrompts
from mmdit.models.class_conditioner import ClassConditioner
from mmdit.models.layers import reset_linears, zero_linear
from mmdit.models.refiner import TokenRefiner

MAX_SUBJECTS = 4  # of models whose folder doesn't say


@dataclass(frozen=True)
class PromptInputs:
    """Class ids (B,), -1 = none, and prompts, None = no sample has one."""

    class_labels: Tensor
    prompts: EncodedPrompts | None = None


class PromptConditioner(ClassConditioner):
    """An encoded prompt beside a class label: its states are tokens, for blocks that attend to them.

    The mean of the states is added to the vector, by a projection that begins at zero: the vector carries the category, the
    tokens its attributes. Without a prompt it is ``ClassConditioner``, bit for bit.

    Args:
        num_classes, hidden_size, dropout_prob: as in ``ClassConditioner``; D.
        text_width: W.
        max_subjects: the most images that a prompt was trained with, and may have.
        refiner_depth: layers of trained attention among the tokens before the blocks read them, ``TokenRefiner``.
    """

    def __init__(
        self,
        num_classes: int,
        hidden_size: int,
        dropout_prob: float = 0.1,
        *,
        text_width: int = 768,
        max_subjects: int = MAX_SUBJECTS,
        refiner_depth: int = 0,
    ) -> None:
        super().__init__(num_classes, hidden_size, dropout_prob)
        self.max_subjects = max_subjects
        self.token_norm = nn.LayerNorm(text_width)
        self.token_proj = nn.Linear(text_width, hidden_size)
        self.pooled_proj = nn.Linear(text_width, hidden_size)
        self.refiner = TokenRefiner(hidden_size, refiner_depth)

    def forward(self, prompt: PromptInputs | Tensor | Sequence[int | None] | None = None) -> Conditioning:
        """Encode class ids, as ``ClassConditioner`` does, or ``PromptInputs``."""
        if not isinstance(prompt, PromptInputs):
            return super().forward(prompt)
        vector = super().forward(prompt.class_labels).vector  # (B, D)
        if prompt.prompts is None:
            return Conditioning(vector)
        given = prompt.prompts
        mask = given.mask & given.present[:, None]  # (B, L)
        states = self.normed_states(given)
        kept = mask[..., None].to(states.dtype)
        pooled = (states * kept).sum(1) / kept.sum(1).clamp_min(1)  # (B, W)
        added = torch.where(given.present[:, None], self.pooled_proj(pooled), 0.0)
        subjects = given.subjects.masked_fill(~mask, NO_SUBJECT)
        tokens = self.refiner(self.token_proj(states), mask)  # (B, L, D)
        return Conditioning(vector + added, tokens, mask, subjects)

    def normed_states(self, given: EncodedPrompts) -> Tensor:
        """``states`` behind a norm, (B, L, W): what the vector and, projected, the refiner take."""
        return self.token_norm(self.states(given).to(self.token_norm.weight.dtype))

    def states(self, given: EncodedPrompts) -> Tensor:
        """What becomes tokens, (B, L, W)."""
        return given.states

    def without(self, prompt: Any, rows: Tensor) -> Any:
        """Take class and prompt away in ``rows``."""
        if not isinstance(prompt, PromptInputs):
            return super().without(prompt, rows)
        labels = super().without(prompt.class_labels, rows)
        return PromptInputs(labels, None if prompt.prompts is None else prompt.prompts.without(rows))

    def of_batch(self, batch: Mapping[str, Any]) -> PromptInputs:
        """Class ids, and under "prompts" what the frozen encoders made of the captions, if there are any."""
        return PromptInputs(batch["category"], batch.get("prompts"))

    def of_inputs(self, class_labels: Sequence[int | None], prompts: Any) -> PromptInputs:
        """Class ids of a pipeline's call, and its prompts, encoded."""
        labels = torch.tensor([-1 if label is None else label for label in class_labels])
        return PromptInputs(labels, prompts)

    def reset_parameters(self) -> None:
        """Xavier-uniform; the pooled projection begins at zero."""
        super().reset_parameters()
        reset_linears(self)
        zero_linear(self.pooled_proj)
        self.refiner.start_as_identity()
