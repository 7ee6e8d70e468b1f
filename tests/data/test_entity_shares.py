from __future__ import annotations

from collections import Counter

import pytest
import torch

from mmdit.data.entity_shares import ENTITY_SHARES, draw_entities


def test_the_published_shares():
    assert ENTITY_SHARES == (0.16, 0.37, 0.26, 0.12, 0.09)
    assert sum(ENTITY_SHARES) == pytest.approx(1)


def test_counts_and_entities_that_are_drawn():
    generator = torch.Generator().manual_seed(0)
    draws = [draw_entities(6, generator) for _ in range(3000)]
    assert all(drawn == sorted(set(drawn)) and set(drawn) <= set(range(6)) for drawn in draws)
    counts = Counter(map(len, draws))
    for number, share in enumerate([0.16, 0.37, 0.26, 0.12, 0.03, 0.03, 0.03]):
        assert counts[number] / len(draws) == pytest.approx(share, abs=0.03)
    single = Counter(drawn[0] for drawn in draws if len(drawn) == 1)
    assert min(single.values()) / max(single.values()) > 0.7  # no entity is preferred


@pytest.mark.parametrize(("count", "shares"), [(0, [1.0]), (1, [0.16 / 0.53, 0.37 / 0.53])])
def test_images_with_fewer_entities(count, shares):
    generator = torch.Generator().manual_seed(1)
    counts = Counter(len(draw_entities(count, generator)) for _ in range(800))
    assert [counts[k] / 800 for k in range(count + 1)] == pytest.approx(shares, abs=0.06)


def test_the_generator_decides():
    first, second = (
        [draw_entities(5, generator) for _ in range(9)]
        for generator in (torch.Generator().manual_seed(3) for _ in "ab")
    )
    assert first == second
