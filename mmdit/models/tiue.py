"""UMM-Diffusion's text-and-image unified encoder (arXiv 2303.09319, section 3.2), its trainable part.

B samples, L tokens of the prompt, S subjects in the batch, W width of the text encoder, P of the image encoder, D of ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmdit.conditioning import EncodedPrompts
from mmdit.models.prompted import PromptConditioner, PromptInputs

__all__ = ["PromptInputs", "TIUEConditioner"]


class TIUEConditioner(PromptConditioner):
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
        settings: those of ``PromptConditioner``.
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
        **settings: int,
    ) -> None:
        super().__init__(num_classes, hidden_size, dropout_prob, text_width=text_width, **settings)
        self.text_share = text_share
        self.pseudo_word = nn.Sequential(
            nn.Linear(image_width, 2 * text_width), nn.GELU(), nn.Linear(2 * text_width, text_width)
        )

    def states(self, given: EncodedPrompts) -> Tensor:
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

    def drop(self, prompt: Any, draw: Tensor) -> Any:
        """UMM-Diffusion's draw (section 4.1): nothing, the text alone, or text and images, by ``draw`` (B,) in [0, 1)."""
        prompt = super().drop(prompt, draw)
        if not isinstance(prompt, PromptInputs) or prompt.prompts is None:
            return prompt
        return replace(prompt, prompts=prompt.prompts.text_only(draw < self.dropout_prob + self.text_share))

    def reset_parameters(self) -> None:
        """Xavier-uniform; the pooled projection begins at zero, pseudo-words at the size of word embeddings."""
        super().reset_parameters()
        last = self.pseudo_word[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.02)
