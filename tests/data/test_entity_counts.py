from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmdit.data.entity_counts import COUNTS, ENTITY_SHARES, draw_published, draw_uniform
from mmdit.data.prompted import PromptDraw, draw_prompt
from mmdit.data.prompts import CaptionedSample, Entity
from mmdit.errors import UserError


def _shares(draw, most, count=4000):
    rng = np.random.default_rng(0)
    found = Counter(draw(most, rng) for _ in range(count))
    assert set(found) <= set(range(most + 1))
    return [found[number] / count for number in range(most + 1)]


def test_the_published_shares():
    assert ENTITY_SHARES == (0.16, 0.37, 0.26, 0.12, 0.09)
    assert _shares(draw_published, 4) == pytest.approx(ENTITY_SHARES, abs=0.03)
    assert _shares(draw_published, 6) == pytest.approx([0.16, 0.37, 0.26, 0.12, 0.03, 0.03, 0.03], abs=0.03)


def test_captions_with_fewer_entities():
    assert _shares(draw_published, 1) == pytest.approx([0.16 / 0.53, 0.37 / 0.53], abs=0.03)
    assert _shares(draw_published, 0) == [1.0]


def test_uniform():
    assert _shares(draw_uniform, 3) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


def test_prompts_are_drawn_by_the_shares(tmp_path):
    text = "a b c d e f"
    entities = tuple(Entity(text[i], ((i, i + 1),), images=(tmp_path / f"{i}.png",)) for i in range(0, len(text), 2))
    sample, rng = CaptionedSample("x", (text,), entities), np.random.default_rng(1)
    draw = PromptDraw(counts="unimo", max_subjects=4)
    drawn = [draw_prompt(sample, draw, rng, has_picture=False) for _ in range(3000)]
    counts = Counter(len(one.shown) for one in drawn)
    assert [counts[number] / 3000 for number in range(5)] == pytest.approx(ENTITY_SHARES, abs=0.03)
    for one in drawn[:50]:
        assert one.prompt.text == text
        assert [one.entities[place].phrase for place in one.shown] == list(one.prompt.words)
    assert "unimo" in COUNTS
    with pytest.raises(UserError, match=r"unknown prompts\.counts 'unim': did you mean 'unimo'"):
        PromptDraw(counts="unim")
