"""UMM-Diffusion's text-and-image unified encoder (arXiv 2303.09319, section 3.2), its trainable part.

B samples, L tokens of the prompt, S subjects in the batch, W width of the text encoder, P of the image encoder, D of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmdit.conditioning import NO_SUBJECT, Conditioning, EncodedPrompts
from mmdit.models.class_conditioner import ClassConditioner
from mmdit.models.layers import reset_linears, zero_linear


@dataclass(frozen=True)
class PromptInputs:
    """Class ids (B,), -1 = none, and prompts, None = no sample has one."""

    class_labels: Tensor
    prompts: EncodedPrompts | None = None


class TIUEConditioner(ClassConditioner):
    """Text with subjects' images, beside a class label: a vector, and tokens for blocks that attend to them.

    The image embedding of each subject becomes a pseudo-word by a trainable MLP; a frozen text encoder reads it in place of
    the subject's words (h_r); states off these words are those of the pure text (h_y). All states together (h_u), not
    pooled, are the tokens. Their mean is added to the vector, by a projection that begins at zero: the vector carries the
    category, the tokens its attributes. Without a prompt it is ``ClassConditioner``, bit for bit.

    Args:
        num_classes, hidden_size, dropout_prob: as in ``ClassConditioner``; D.
        text_width: W.
        image_width: P.
        text_share: share of the samples that training gives the text alone (UMM-Diffusion: none 0.1, text 0.36, both 0.54).
    """

    fuses_subjects: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        hidden_size: int,
        dropout_prob: float = 0.1,
        *,
        text_width: int = 768,
        image_width: int = 768,
        text_share: float = 0.36,
    ) -> None:
        super().__init__(num_classes, hidden_size, dropout_prob)
        self.text_share = text_share
        self.pseudo_word = nn.Sequential(
            nn.Linear(image_width, 2 * text_width), nn.GELU(), nn.Linear(2 * text_width, text_width)
        )
        self.token_norm = nn.LayerNorm(text_width)
        self.token_proj = nn.Linear(text_width, hidden_size)
        self.pooled_proj = nn.Linear(text_width, hidden_size)

    def forward(self, prompt: PromptInputs | Tensor | Sequence[int | None] | None = None) -> Conditioning:
        """Encode class ids, as ``ClassConditioner`` does, or ``PromptInputs``."""
        if not isinstance(prompt, PromptInputs):
            return super().forward(prompt)
        vector = super().forward(prompt.class_labels).vector  # (B, D)
        if prompt.prompts is None:
            return Conditioning(vector)
        given = prompt.prompts
        mask = given.mask & given.present[:, None]  # (B, L)
        states = self.token_norm(self._unified(given))  # (B, L, W)
        kept = mask[..., None].to(states.dtype)
        pooled = (states * kept).sum(1) / kept.sum(1).clamp_min(1)  # (B, W)
        added = torch.where(given.present[:, None], self.pooled_proj(pooled), 0.0)
        subjects = given.subjects.masked_fill(~mask, NO_SUBJECT)
        return Conditioning(vector + added, self.token_proj(states), mask, subjects)

    def _unified(self, given: EncodedPrompts) -> Tensor:
        """h_u: h_y, with the states at the subjects' words from h_r, (B, L, W)."""
        at_subjects = given.subjects >= 0
        if len(given.subject_embeddings) == 0 or not bool(at_subjects.any()):
            return self._with_idle_weights(given.states)
        restated = given.restate(self.pseudo_word(given.subject_embeddings))
        return torch.where(at_subjects[..., None], restated, given.states)

    def _with_idle_weights(self, states: Tensor) -> Tensor:
        """The same states. In training the pseudo-word's weights get a gradient of zero: distributed training waits for one."""
        if not (self.training and torch.is_grad_enabled()):
            return states
        first = self.pseudo_word[0]
        assert isinstance(first, nn.Linear)
        return states + 0 * self.pseudo_word(states.new_zeros(1, first.in_features)).sum().to(states.dtype)

    def without(self, prompt: Any, rows: Tensor) -> Any:
        """Take class and prompt away in ``rows``."""
        if not isinstance(prompt, PromptInputs):
            return super().without(prompt, rows)
        labels = super().without(prompt.class_labels, rows)
        return PromptInputs(labels, None if prompt.prompts is None else prompt.prompts.without(rows))

    def drop(self, prompt: Any, draw: Tensor) -> Any:
        """UMM-Diffusion's draw (section 4.1): nothing, the text alone, or text and images, by ``draw`` (B,) in [0, 1)."""
        prompt = super().drop(prompt, draw)
        if not isinstance(prompt, PromptInputs) or prompt.prompts is None:
            return prompt
        return replace(prompt, prompts=prompt.prompts.text_only(draw < self.dropout_prob + self.text_share))

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
        last = self.pseudo_word[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.02)  # of the size of word embeddings
