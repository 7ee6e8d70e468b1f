from __future__ import annotations

import pytest

from mmdit.sources.prompts.crops import choose_boxes
from mmdit.sources.prompts.detection import Box
from mmdit.sources.prompts.interleaved import in_captions
from mmdit.sources.prompts.lookup import find_phrase, find_phrases, one_text, parse_entities
from mmdit.sources.prompts.settings import CropSettings


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("dog", "a dog and a cat", "dog"),
        ("dog", "A Dog.", "Dog"),
        ("dog", "two dogs", None),  # a plural is several
        ("dog", "hotdog dogma", None),
        ("dog", "the dog's bowl", "dog"),
        ("dog", "(dog)", "dog"),
        ("teddy bear", "a teddy-bear", "teddy-bear"),
        ("teddy_bear", "a teddy\n bear", "teddy\n bear"),
        ("dining table", "a table", None),
        ("café", "das Café steht", "Café"),
        ("c++ (book)", "a C++ (book)", "C++ (book)"),
        ("狗", "一只狗在草地上", "狗"),
        ("犬", "公園の犬。", "犬"),
        ("แมว", "รูปแมวสีดำ", "แมว"),
        ("개", "개 한 마리", "개"),
        ("न", "नमक", None),  # its vowel signs belong to a word
        ("", "a dog", None),
        ("{dog}", "a {dog}", None),  # prompts mark no words with braces in them
        ("dog", "a {dog}", "dog"),
        ("- _", "a - b", None),
        ("dog", "", None),
        ("dog", 'a "dog" barks', "dog"),
        ("cat", "İ cat", "cat"),  # lower case of the first letter has two characters
    ],
)
def test_a_phrase_is_found_as_whole_words(phrase, text, found):
    span = find_phrase(phrase, text)
    assert (span and text[slice(*span)]) == found


def test_the_first_place_that_is_free():
    text = "a dog near a dog"
    assert find_phrase("dog", text) == (2, 5)
    assert find_phrase("dog", text, [(0, 5)]) == (13, 16)
    assert find_phrase("dog", text, [(0, 16)]) is None


def test_longer_phrases_come_first():
    text = "a bear with a teddy bear"
    assert find_phrases(["bear", "teddy bear"], text) == [(2, 6), (14, 24)]
    assert find_phrases(["bear", "teddy bear"], "a teddy bear") == [None, (2, 12)]
    assert find_phrases([], text) == []


@pytest.mark.parametrize(
    ("answer", "entities"),
    [
        ("a red torus\na blue cone", ["red torus", "blue cone"]),
        ("- The dog\n* a cat.\n3) an owl\n(4) some grass", ["dog", "cat", "owl", "grass"]),
        ("dog, cat, dog; tree.", ["dog", "cat", "tree"]),
        ('["a dog", "a cat"]', ["dog", "cat"]),
        ('Here they are:\n```json\n["dog",\n "cat"]\n```', ["dog", "cat"]),
        ("The objects are:\n1. **dog**\n2. 'cat'", ["dog", "cat"]),
        ("<think>a cat? no, a dog</think>dog", ["dog"]),
        ("Dog\ndog\nDOG", ["Dog"]),
        ("None", []),
        ("", []),
        ("...\n---\n12", []),
        ("this whole sentence says a great deal about the picture and lists no single thing", []),
        ("[broken, dog", ["[broken", "dog"]),
        ("狗、猫", ["狗", "猫"]),
        ("{red torus}, {cone}", ["red torus", "cone"]),
        ("a", ["a"]),  # not in a caption as an entity, and refused there
    ],
)
def test_entities_of_an_answer(answer, entities):
    assert parse_entities(answer, 8) == entities


def test_the_most_entities():
    assert parse_entities("a\nb\nc", 2) == ["a", "b"]
    assert parse_entities("\n".join(f"thing {chr(97 + i)}" for i in range(20)), 8)[-1] == "thing h"


def test_an_answer_is_one_line_of_text():
    assert one_text(' "A dog\n  runs." ') == "A dog runs."
    assert one_text("<think>\nhm\n</think>\nIt's") == "It's"
    assert one_text("'") == "'"
    assert one_text("") == ""


def test_published_filters_of_boxes():
    def box(label, width, score=0.9):
        return Box(label, score, (0.0, 0.0, width, 1.0))

    boxes = [box("dog", 0.5, 0.99), box("cat", 0.3), box("dog", 0.05), box("owl", 0.09), box("tree", 0.1)]
    assert [found.label for found in choose_boxes(boxes, CropSettings())] == ["cat", "tree"]
    several = choose_boxes(boxes, CropSettings(several=True))
    assert [(found.label, found.score) for found in several] == [("dog", 0.99), ("cat", 0.9), ("tree", 0.9)]
    small = choose_boxes(boxes, CropSettings(min_area=0))
    assert [found.label for found in small] == ["cat", "owl", "tree"]


def test_entities_are_those_of_the_captions_in_their_order():
    captions = ["A blue cone beside the Red Torus", "ein Torus; a blue  cone"]
    phrases, spans = in_captions(["red torus", "ball", "blue cone"], captions)
    assert phrases == ["blue cone", "Red Torus"]
    assert spans == [((2, 11), (13, 23)), ((23, 32), None)]
    assert captions[1][13:23] == "blue  cone"
    only_second, where = in_captions(["torus"], ["a cone", "a torus"])
    assert (only_second, where) == (["torus"], [(None, (2, 7))])
