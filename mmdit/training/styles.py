"""The loss that teaches a conditioner what "in the style of the {scene}" means, by a floor and a wall that it can read.

One pseudo-word that tells two colours is not what a denoiser's attention reads. The tokens of a floor's word and a wall's are.
So the refiner has to bring what the scene's word tells to another word's place, and by itself it learns to look elsewhere: a loss
on its attention says where to look.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mmdit.conditioning import EncodedPrompts
from mmdit.models.prompted import PromptInputs
from mmdit.models.refiner import RefinerLayer
from mmdit.models.tiue import TIUEConditioner


class StyleObjective:
    """Squared error of the tokens of styled prompts to those of prompts that tell the same, and of all others to what they were.

    In units of the variance over the others, a mean over the tokens' dimensions.

    Args:
        conditioner: as it is before training, whose tokens are the targets; it is copied.
        kept_weight: weight of the others.
        attention_weight: weight of the attention's loss, the negative logarithm of how much a word reads of the style's word in
            the refiner's first layer: the word whose place in the told prompt a picture has.
    """

    def __init__(self, conditioner: TIUEConditioner, kept_weight: float = 2.0, attention_weight: float = 0.05) -> None:
        self.before = copy.deepcopy(conditioner).eval().requires_grad_(False)
        self.kept_weight, self.attention_weight = kept_weight, attention_weight

    def __call__(
        self,
        conditioner: TIUEConditioner,
        kept: EncodedPrompts,
        styled: EncodedPrompts | None = None,
        told: EncodedPrompts | None = None,
    ) -> dict[str, Tensor]:
        """Compute "loss", "kept", "style" and "attention", the last two 0 where there are no styles.

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
        none = scale.new_zeros(())
        losses = {"kept": error(kept, as_before), "style": none, "attention": none}
        loss = self.kept_weight * losses["kept"]
        if styled is not None and told is not None and as_told is not None:
            losses["style"] = error(styled, as_told)
            losses["attention"] = _reading_loss(conditioner, styled, (told.subjects >= 0) & (styled.subjects < 0))
            loss = loss + losses["style"] + self.attention_weight * losses["attention"]
        return {"loss": loss, **losses}


def _reading_loss(conditioner: TIUEConditioner, given: EncodedPrompts, readers: Tensor) -> Tensor:
    """-log of what tokens, ``readers`` (B, L) bool, read of their prompt's pictures; a mean."""
    layer = conditioner.refiner.layers[0]
    assert isinstance(layer, RefinerLayer)
    read = layer.map(conditioner.token_proj(conditioner.normed_states(given)), given.mask)  # (B, L, L)
    pictures = (given.subjects >= 0)[:, None].to(read.dtype)  # (B, 1, L)
    return -(read * pictures).sum(dim=2)[readers].clamp_min(1e-6).log().mean()


def tokens_of(conditioner: TIUEConditioner, given: EncodedPrompts) -> Tensor:
    """What the denoiser's blocks read of encoded prompts, one after the other: (all their tokens, D)."""
    labels = torch.full((len(given.states),), -1, device=given.states.device)
    conditioning = conditioner(PromptInputs(labels, given))
    assert conditioning.tokens is not None
    return conditioning.tokens[conditioning.token_mask]
