"""The loss that teaches a conditioner what "in the style of the {scene}" means, by a floor and a wall that it can read.

One pseudo-word that tells two colours is not what a denoiser's attention reads. The tokens of a floor's word and a wall's are.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mmdit.conditioning import EncodedPrompts
from mmdit.models.prompted import PromptInputs
from mmdit.models.tiue import TIUEConditioner


class StyleObjective:
    """Squared error of the tokens of styled prompts to those of prompts that tell the same, and of all others to what they were.

    In units of the variance over the others, a mean over the tokens' dimensions.

    Args:
        conditioner: as it is before training, whose tokens are the targets; it is copied.
        kept_weight: weight of the others.
    """

    def __init__(self, conditioner: TIUEConditioner, kept_weight: float = 2.0) -> None:
        self.before = copy.deepcopy(conditioner).eval().requires_grad_(False)
        self.kept_weight = kept_weight

    def __call__(
        self,
        conditioner: TIUEConditioner,
        kept: EncodedPrompts,
        styled: EncodedPrompts | None = None,
        told: EncodedPrompts | None = None,
    ) -> dict[str, Tensor]:
        """Compute "loss", "style" and "kept".

        Args:
            conditioner: what is trained.
            kept: what stays as it was.
            styled, told: of one length, of equal masks: as many tokens a prompt. None = none.
        """
        self.before.to(kept.states.device)

        def error(given: EncodedPrompts, target: Tensor) -> Tensor:
            return (tokens_of(conditioner, given) - target).square().mean() / scale

        with torch.no_grad():
            as_before = tokens_of(self.before, kept)
            scale = as_before.var(dim=0).mean()
            as_told = None if told is None else tokens_of(self.before, told)
        stayed = error(kept, as_before)
        style = stayed.new_zeros(()) if styled is None or as_told is None else error(styled, as_told)
        return {"loss": style + self.kept_weight * stayed, "style": style, "kept": stayed}


def tokens_of(conditioner: TIUEConditioner, given: EncodedPrompts) -> Tensor:
    """What the denoiser's blocks read of encoded prompts, one after the other: (all their tokens, D)."""
    labels = torch.full((len(given.states),), -1, device=given.states.device)
    conditioning = conditioner(PromptInputs(labels, given))
    assert conditioning.tokens is not None
    return conditioning.tokens[conditioning.token_mask]
