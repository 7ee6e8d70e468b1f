"""How many of a caption's entities are replaced by their pictures, as UNIMO-G's training prompts have it."""

from __future__ import annotations

import torch

# Prompts with 0, 1, 2, 3 and with 4 or more entities as pictures (arXiv 2401.13388, section on data).
ENTITY_SHARES = (0.16, 0.37, 0.26, 0.12, 0.09)


def share_of(count: int) -> int:
    """Index into ``ENTITY_SHARES`` of a number of entities."""
    return min(count, len(ENTITY_SHARES) - 1)


def draw_entities(count: int, generator: torch.Generator) -> list[int]:
    """Draw which entities of a caption are replaced: at training time, anew for each sample, so that data keep them all.

    The number is drawn by the published shares among 0 to ``count``, where the last share is parted evenly among 4, 5, …;
    then which ones, all alike. Over a dataset the shares are met as far as its images have so many entities: what
    an image lacks is drawn from the smaller numbers.

    Args:
        count: entities that the caption names and that have pictures, at least 0.
        generator: on the CPU.

    Returns:
        Their indices, ascending.
    """
    last = len(ENTITY_SHARES) - 1
    beyond = max(count - last + 1, 1)
    weights = [ENTITY_SHARES[share_of(k)] / (beyond if k >= last else 1) for k in range(count + 1)]
    chosen = int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))
    return sorted(torch.randperm(count, generator=generator)[:chosen].tolist())
