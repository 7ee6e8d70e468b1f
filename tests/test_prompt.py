"""The syntax of prompts: text, positions, subjects, mirror images."""

from __future__ import annotations

import random

import pytest

from mmdit.errors import UserError
from mmdit.prompt import IMAGE_WORD, Prompt, Span, mirror_text, parse


def test_text_alone():
    prompt = parse("a red torus left of a blue cone")
    assert prompt == Prompt("a red torus left of a blue cone")
    assert prompt.words == ()


def test_words_in_braces_stand_for_images():
    prompt = parse("a {torus} in front of a {red cone}", {"red cone": "second", "torus": "first"})
    assert prompt.text == "a torus in front of a red cone"
    assert prompt.words == ("torus", "red cone")
    assert prompt.spans == (Span(2, 7, 0), Span(22, 30, 1))
    assert prompt.images == ("first", "second")
    assert prompt.text_only == Prompt("a torus in front of a red cone")


def test_an_image_without_a_word():
    prompt = parse("{} on a green floor", ["image"])
    assert prompt.text == f"{IMAGE_WORD} on a green floor"
    assert prompt.words == (IMAGE_WORD,)
    for template in ("{}{}", "{torus}{}", "{}{torus}"):
        beside = parse(template, [1, 2])
        assert beside.words == tuple(beside.text.split(" ")), "two words, which a tokenizer knows"
        assert parse(beside.template, [1, 2]) == beside


def test_one_word_twice():
    """By name both mean one subject; by position each has its own."""
    template = "a {torus} beside a {torus}"
    assert [span.subject for span in parse(template, {"torus": "one"}).spans] == [0, 0]
    by_position = parse(template, ["one", "two"])
    assert [span.subject for span in by_position.spans] == [0, 1]
    assert by_position.images == ("one", "two")


def test_doubled_braces_are_braces():
    prompt = parse("a {{torus}} and a {cone}", ["image"])
    assert prompt.text == "a {torus} and a cone"
    assert prompt.words == ("cone",)
    assert prompt.template == "a {{torus}} and a {cone}"


@pytest.mark.parametrize("seed", range(50))
def test_template_is_read_back(seed):
    """Any text, braces and other alphabets included, with any words marked."""
    draw = random.Random(seed)
    words = ["a", "torus", "red cone", "{", "}", "{{x}}", "löwe", "गाय", "left", "…"]
    parts = [(draw.choice(words), draw.random() < 0.4) for _ in range(draw.randint(1, 12))]
    text, spans = "", []
    for word, is_marked in parts:
        if is_marked and "{" not in word and "}" not in word:
            spans.append(Span(len(text), len(text) + len(word), len(spans)))
        text += word + " "
    prompt = Prompt(text, tuple(spans), tuple(range(len(spans))))
    assert parse(prompt.template, list(range(len(spans)))) == prompt


def test_mirrored_prompt_has_sides_exchanged_and_spans_moved():
    prompt = parse("left: a {left torus}, Right of the LEFTMOST {cone}", ["a", "b"])
    mirrored = prompt.mirrored()
    assert mirrored.text == "right: a right torus, Left of the RIGHTMOST cone"
    assert mirrored.words == ("right torus", "cone")
    assert mirrored.images == prompt.images
    assert mirrored.mirrored() == prompt
    assert mirror_text("a bright cleft, upright leftovers, rightly") == "a bright cleft, upright leftovers, rightly"
    assert (
        mirror_text("right behind it, right  in front, to the right") == "right behind it, right  in front, to the left"
    )


@pytest.mark.parametrize(
    ("template", "subjects", "told"),
    [
        ("a {torus in front", None, "'{' at character 3 is not closed"),
        ("a torus} in front", None, "'}' at character 8 closes nothing"),
        ("a {red {torus}}", ["x"], "braces in braces"),
        ("a { torus }", ["x"], "write '{torus}'"),
        ("", None, "prompt is empty"),
        ("   ", None, "prompt is empty"),
        (7, None, "prompt is a int"),
        ("a \udcff torus", None, "character 3 is no character: give UTF-8 text"),
        ("a {torus}", None, "marks 1 subjects ({torus}) and 0 images"),
        ("a {torus}", {}, "{torus} in the prompt has no image"),
        ("a {torus}", {"torus": 1, "cone": 2}, "subject 'cone' is not in the prompt"),
        ("a {torus}", {"tours": 1}, "nearest is 'torus'"),
        ("a torus", {"torus": 1}, "subject 'torus' is not in the prompt"),
        ("a {torus}", ["a", "b"], "2 images are given"),
        ("a {torus}", "torus.png", "subjects is a str"),
        ("a {torus}", 3, "subjects is a int"),
    ],
)
def test_what_is_wrong_is_told(template, subjects, told):
    with pytest.raises(UserError) as error:
        parse(template, subjects)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
