"""How many of a caption's entities are shown by pictures, drawn anew each time a sample is met: the data keep them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Prompts with 0, 1, 2, 3 and with 4 or more entities as pictures (UNIMO-G, arXiv 2401.13388, section on data).
ENTITY_SHARES = (0.16, 0.37, 0.26, 0.12, 0.09)


def share_of(count: int) -> int:
    """Index into ``ENTITY_SHARES`` of a number of entities."""
    return min(count, len(ENTITY_SHARES) - 1)


def draw_uniform(most: int, rng: np.random.Generator) -> int:
    """Draw 1 to ``most``, all alike."""
    return int(rng.integers(1, most + 1))


def draw_published(most: int, rng: np.random.Generator) -> int:
    """Draw 0 to ``most`` by UNIMO-G's shares; the last one is parted evenly among 4, 5, … ``most``.

    Over a dataset the shares are met as far as its captions name so many entities: what one lacks is drawn from the smaller
    numbers in proportion.
    """
    last = len(ENTITY_SHARES) - 1
    beyond = max(most - last + 1, 1)
    weights = np.array([ENTITY_SHARES[share_of(k)] / (beyond if k >= last else 1) for k in range(most + 1)])
    return int(rng.choice(most + 1, p=weights / weights.sum()))


# Name -> (the most that can be shown, at least 1, and a generator) -> how many are.
COUNTS: dict[str, Callable[[int, np.random.Generator], int]] = {"uniform": draw_uniform, "unimo": draw_published}
