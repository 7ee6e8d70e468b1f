"""Token routing in training (TREAD, arXiv 2501.04765): the draws, and what of a configuration goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.models.alignment import PROJECTORS
from mmdit.models.routing import Route
from mmdit.models.transformer import MultimodalDiT
from mmdit.training.config import TrainingConfig


@dataclass(frozen=True)
class TokenRouting:
    """A share of each sample's tokens skips blocks ``first`` to ``last``; validation and sampling have all tokens everywhere.

    Args:
        share: of the tokens that skip, rounded down to whole tokens.
        first, last: numbers of blocks, 1 = the first.
    """

    share: float
    first: int
    last: int

    def draw(self, batch_size: int, num_tokens: int, generator: torch.Generator) -> Tensor:
        """Numbers of the tokens that go through, (B, K), ascending: of all samples of a step, whichever process has them."""
        scores = torch.rand(batch_size, num_tokens, generator=generator)
        num_kept = num_tokens - int(self.share * num_tokens)
        return scores.argsort(1)[:, :num_kept].sort(1).values

    def route(self, kept: Tensor) -> Route:
        """The way of samples whose tokens ``kept`` (B, K) go through."""
        return Route(kept, self.first, self.last)


def token_routing(
    config: TrainingConfig, network: MultimodalDiT, attention_blocks: Sequence[int]
) -> TokenRouting | None:
    """What the section routing says, None without it.

    Raises:
        UserError: blocks outside the depth, or something that reads all tokens inside of the span.
    """
    settings = config.routing
    if settings is None:
        return None
    depth, first = len(network.blocks), settings.first
    last = depth + 1 - first if settings.last is None else settings.last
    if not first <= last <= depth:
        raise UserError(f"routing: blocks {first} to {last} of {depth}: give first and last in order, at most {depth}")
    if not 0 < settings.share < 1:
        raise UserError(f"routing.share is {settings.share:g}: give a share between 0 and 1, or routing null")
    height, width = (side // network.config.patch_size for side in network.latent_shape)
    if int(settings.share * height * width) == 0:
        raise UserError(
            f"routing.share is {settings.share:g} of {height * width} tokens, less than one: give at least {1 / height / width:g}"
        )
    if config.objective.name != "flow":
        raise UserError(f"routing goes with objective.name 'flow', it is {config.objective.name!r}")
    span = Route(torch.empty(0, 0, dtype=torch.long), first, last)
    there = f"in the span of routing, blocks {first} to {last}"
    if inside := [number for number in attention_blocks if first <= number <= last]:
        raise UserError(f"prompts.attention_blocks has {inside[0]}, {there}: tokens that skip it attend to nothing")
    middle = network.config.internal_guidance_depth
    if middle is not None and span.is_sparse_behind(middle):
        raise UserError(f"model.internal_guidance_depth is {middle}, {there}: its head needs all tokens")
    alignment = config.alignment
    if (
        alignment is not None
        and span.is_sparse_behind(alignment.depth)
        and PROJECTORS[alignment.projector].mixes_tokens
    ):
        raise UserError(
            f"alignment.depth is {alignment.depth}, {there}: projector {alignment.projector!r} needs all tokens"
        )
    return TokenRouting(settings.share, first, last)
