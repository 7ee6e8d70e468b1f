"""Captions say what the layout holds, and mark where."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mmdit.colours import COLOUR_NAMES
from mmdit.names import RELATION_WORDS
from mmdit.prompt import Prompt, Span
from mmdit.sources.scenes.captions import JOINED_WORDS, STYLE, captions, phrase
from mmdit.sources.scenes.layout import CATEGORY_NAMES, sample_layout
from mmdit.sources.scenes.subjects import OPPOSITE, sample_subject_layout


def _layouts():
    yield from (sample_subject_layout(2, "train", index) for index in range(40))
    yield from (sample_subject_layout(2, "train", index, variety=True) for index in range(16))
    yield from (sample_layout(2, "train", index) for index in range(16))


@pytest.fixture(scope="module")
def described():
    return [(layout, captions(layout, np.random.default_rng(k))) for k, layout in enumerate(_layouts())]


def test_several_wordings(described):
    for _, drawn in described:
        assert len(drawn) == 6
    assert np.mean([len({caption.text for caption in drawn}) for _, drawn in described]) > 4


def test_spans_hold_the_objects_words(described):
    for layout, drawn in described:
        for caption in drawn:
            assert len(caption.spans) == len(layout.objects)
            assert caption.spans[0] is not None
            for placed, span in zip(layout.objects, caption.spans, strict=True):
                if span is not None:
                    assert caption.text[slice(*span)] in (placed.category, phrase(placed))
            spans = [Span(*span, subject=0) for span in sorted(filter(None, caption.spans))]
            Prompt(caption.text, tuple(spans))  # they fit the text and do not overlap


def test_what_is_said_is_there_and_nothing_else(described):
    for layout, drawn in described:
        categories = {placed.category for placed in layout.objects}
        for caption in drawn:
            assert set(re.findall("|".join(CATEGORY_NAMES), caption.text)) <= categories
            objects = caption.text.split(" on a")[0].split(" against a")[0] if not layout.relation else ""
            for colour in re.findall(rf"\b({'|'.join(COLOUR_NAMES)})\b", objects):
                assert colour in {phrase(placed).split()[0] for placed in layout.objects}


def test_style_is_asked_for_often_enough_to_be_learned(described):
    """In half of the captions of a pair, of which another picture has the same floor and wall; in no other."""
    asked = {
        pair: [
            STYLE in caption.ground for layout, drawn in described if bool(layout.relation) == pair for caption in drawn
        ]
        for pair in (True, False)
    }
    assert np.mean(asked[True]) == pytest.approx(0.5, abs=4 * (0.5 * 0.5 / len(asked[True])) ** 0.5)
    assert not any(asked[False])


def test_relation_is_told_from_either_side(described):
    sides, joined = set(), set()
    for layout, drawn in described:
        if not layout.relation:
            continue
        for caption in drawn:
            first_is_main = caption.spans[0] < caption.spans[1]
            told = layout.relation if first_is_main else OPPOSITE[layout.relation]
            between = caption.text[min(caption.spans)[1] : max(caption.spans)[0]]
            if any(f" {words} " in between for words in JOINED_WORDS):
                joined.add((layout.relation in ("left", "right"), re.sub(" (a|an|the)( .*)?$", "", between.strip())))
                continue
            assert any(f" {words} " in between for words in RELATION_WORDS[told]), (layout.relation, caption)
            sides.add((layout.relation, first_is_main))
    assert len(sides) == 8
    assert joined == {(True, words) for words in JOINED_WORDS} | {(False, "and"), (False, "with")}


def test_sizes_are_told_where_they_differ(described):
    for layout, drawn in described:
        if not layout.relation:
            continue
        sizes = [max(placed.scale) for placed in layout.objects]
        for caption in drawn:
            words = re.findall(r"\b(small|large)\b", caption.text.replace("big", "large"))
            assert words in ([], ["small", "large"], ["large", "small"])
            if words:
                first = caption.spans[0] < caption.spans[1]
                ratio = sizes[0] / sizes[1] if first else sizes[1] / sizes[0]
                assert (ratio > 1.4) == (words[0] == "large")
                assert (ratio < 1 / 1.4) == (words[0] == "small")


def test_articles_and_texture():
    text = " ".join(
        caption.text
        for index in range(60)
        for caption in captions(sample_subject_layout(9, "t", index, variety=True), np.random.default_rng(index))
    )
    assert not re.search(r"\ba (orange|arch|hourglass|[aeiou])", text)
    assert not re.search(r"\ban (red|green|blue|torus|cone|small|shiny)", text)
    assert {"shiny", "striped", "checkered", "speckled"} <= set(text.split())
