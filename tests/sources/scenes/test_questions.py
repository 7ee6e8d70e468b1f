"""Questions about scenes: every answer follows from the entities and the captions."""

from __future__ import annotations

import pytest

from mmdit.data.lines import Rules
from mmdit.data.prompts import CaptionedSample, Entity, read_prompts
from mmdit.sources.scenes.questions import questions


def span(text: str, words: str) -> tuple[int, int] | None:
    start = text.find(words)
    return None if start < 0 else (start, start + len(words))


def sample(*captions: str, **entities: str) -> CaptionedSample:
    """``entities``: phrase -> how the captions call it."""
    made = [
        Entity(phrase.replace("_", " "), tuple(span(text, words) for text in captions))
        for phrase, words in entities.items()
    ]
    return CaptionedSample("0", captions, tuple(made))


@pytest.mark.parametrize(
    ("caption", "before", "after"),
    [
        ("a red torus left of a small blue cone", "left of", "right of"),
        ("a torus on the right of the shiny striped blue cone", "right of", "left of"),
        ("a red torus in front of the cone", "in front of", "behind"),
        ("a photo of a torus at the back of a blue cone", "behind", "in front of"),
    ],
)
def test_relations_are_asked_from_both_sides(caption: str, before: str, after: str) -> None:
    asked = questions(sample("a red torus", caption, red_torus="torus", blue_cone="cone"))
    assert asked == [
        ("what colour is the torus?", "red"),
        ("what colour is the cone?", "blue"),
        (f"what is {before} the cone?", "red torus"),
        (f"what is {after} the torus?", "blue cone"),
    ]


def test_nothing_is_asked_that_has_no_one_answer() -> None:
    two = sample("a red cone left of a blue cone", red_cone="red cone", blue_cone="blue cone", grey_floor="floor")
    assert questions(two) == [("what colour is the floor?", "grey")]
    beside = sample("a red torus with a small blue cone beside it", red_torus="red torus", blue_cone="blue cone")
    assert [question for question, _ in questions(beside)] == ["what colour is the torus?", "what colour is the cone?"]
    assert questions(sample("in the style of the scene", scene="scene")) == []


def test_of_rendered_scenes(prompt_folders) -> None:
    asked = [questions(one) for one in read_prompts(Rules(prompt_folders.data, "train", None, None)).values()]
    kinds = {question.split(" the ")[0] for each in asked for question, _ in each}
    assert "what colour is" in kinds
    assert kinds & {"what is left of", "what is in front of"}
    assert all(each for each in asked)
