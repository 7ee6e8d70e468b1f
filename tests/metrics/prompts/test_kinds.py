"""What is right and wrong, on hand-made views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmdit.data.prompts import Entity
from mmdit.metrics.prompts.cases import Named, PromptCase
from mmdit.metrics.prompts.instrument import RELATIONS, Seen, SeenObject
from mmdit.metrics.prompts.kinds import KINDS, Contradiction, Truth, colour_distance
from mmdit.metrics.prompts.subject_kinds import describe

RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9)


def box(top, left, height, width):
    mask = np.zeros((16, 16), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def thing(category, colour, mask):
    return SeenObject(category, mask, np.array(colour))


def view(*objects, ground=()):
    """Objects in the order of their size, on grey; ground: (name, colour, mask)."""
    picture = np.full((16, 16, 3), 102, dtype=np.uint8)  # 0.4
    foreground = np.zeros((16, 16), dtype=bool)
    for each in objects:
        picture[each.mask] = np.round(each.colour * 255)
        foreground |= each.mask
    for _, colour, mask in ground:
        picture[mask] = np.round(np.array(colour) * 255)
    regions = {name: mask for name, _, mask in ground}
    return Seen(picture, tuple(sorted(objects, key=lambda each: -each.area)), foreground, regions)


def case(*wanted, relation=None):
    objects = tuple(Named(category, colour, Entity(f"{colour} {category}", ())) for category, colour in wanted)
    return PromptCase("", objects, relation, 0, (Path("a.png"),))


def truth(*objects):
    foreground = np.any([each.mask for each in objects], axis=0)
    return Truth(tuple(each.mask for each in objects), tuple(each.colour for each in objects), foreground)


def test_relations():
    first, second = thing("torus", RED, box(0, 0, 6, 4)), thing("cone", BLUE, box(2, 8, 10, 4))
    right = {name for name, holds in RELATIONS.items() if holds(first, second)}
    assert right == {"left", "behind"}
    assert {name for name, holds in RELATIONS.items() if holds(second, first)} == {"right", "front"}


def test_one_object_is_the_largest():
    large, small = thing("cone", BLUE, box(0, 0, 8, 8)), thing("torus", RED, box(10, 10, 3, 3))
    asked, nothing = case(("cone", "blue")), truth(large)
    assert KINDS["text.one"].score(view(large, small), asked, nothing) == {"category": 1.0, "colour": 1.0}
    assert KINDS["text.one"].score(view(small), asked, nothing) == {"category": 0.0, "colour": 0.0}
    assert KINDS["text.one"].score(view(), asked, nothing) == {"category": 0.0, "colour": 0.0}
    other = thing("cone", GREEN, box(0, 0, 8, 8))
    assert KINDS["text.one"].score(view(other), asked, nothing) == {"category": 1.0, "colour": 0.0}


@pytest.mark.parametrize("name", ["floor", "wall"])
def test_a_ground_by_words(name):
    torus, below, nothing = (
        thing("torus", RED, box(0, 0, 8, 8)),
        box(10, 0, 6, 16),
        truth(thing("torus", RED, box(0, 0, 8, 8))),
    )
    asked, kind = case(("torus", "red"), (name, "blue")), KINDS[f"text.{name}"]
    right = kind.score(view(torus, ground=[(name, BLUE, below)]), asked, nothing)
    assert right == {"category": 1.0, "colour": 1.0, "ground": 1.0}
    assert kind.score(view(torus, ground=[(name, GREEN, below)]), asked, nothing)["ground"] == 0.0
    for unseen in ([], [("other", BLUE, below)], [(name, BLUE, np.zeros_like(below))]):
        assert kind.score(view(torus, ground=unseen), asked, nothing)["ground"] == 0.0


def test_two_objects():
    torus, cone = thing("torus", RED, box(0, 0, 6, 4)), thing("cone", BLUE, box(2, 8, 10, 4))
    asked, nothing = case(("torus", "red"), ("cone", "blue"), relation="left"), truth(torus, cone)
    score = KINDS["text.two"].score
    assert score(view(torus, cone), asked, nothing) == {"present": 1, "colour": 1, "relation": 1, "all": 1}
    missing = score(view(torus), asked, nothing)
    assert missing == {"present": 0, "colour": None, "relation": None, "all": 0}
    blended = thing("cone", RED, cone.mask)
    assert score(view(torus, blended), asked, nothing) == {"present": 1, "colour": 0, "relation": 1, "all": 0}
    wrong_way = case(("torus", "red"), ("cone", "blue"), relation="right")
    assert score(view(torus, cone), wrong_way, nothing) == {"present": 1, "colour": 1, "relation": 0, "all": 0}


def test_subjects_colours_are_measured_by_distance():
    true = thing("torus", (0.8, 0.2, 0.1), box(0, 0, 8, 8))
    made = thing("torus", (0.8, 0.2 + 0.3, 0.1 + 0.4), box(4, 4, 8, 8))
    scores = KINDS["subject"].score(view(made), case(("torus", "red")), truth(true))
    assert scores["category"] == 1.0
    assert scores["distance"] == pytest.approx(0.5)
    empty = view()
    assert KINDS["subject"].score(empty, case(("torus", "red")), truth(true))["distance"] == pytest.approx(
        np.linalg.norm(np.full(3, 0.4) - true.colour)
    ), "a picture without an object is not left out"
    assert colour_distance(empty, true, true.colour) == 0.0


def test_two_subjects_fuse():
    torus, cone = thing("torus", RED, box(0, 0, 6, 4)), thing("cone", BLUE, box(2, 8, 10, 4))
    asked, true = case(("torus", "red"), ("cone", "blue"), relation="left"), truth(torus, cone)
    score = KINDS["subjects.two"].score
    right = score(view(torus, cone), asked, true)
    assert (right["all"], right["fused"], right["distance"]) == (1.0, 0.0, 0.0)
    assert score(view(torus), asked, true)["fused"] == 1.0, "one of them alone"
    assert score(view(), asked, true)["fused"] == 0.0, "neither is there: nothing is fused"
    assert score(view(), asked, true)["distance"] is None
    exchanged = score(view(thing("torus", BLUE, torus.mask), cone), asked, true)
    assert (exchanged["fused"], exchanged["colour"]) == (1.0, 0.0)
    third = score(view(thing("torus", GREEN, torus.mask), cone), asked, true)
    assert (third["fused"], third["colour"]) == (0.0, 0.0), "another colour is wrong, and is not the other's"
    between = tuple((np.array(RED) + np.array(BLUE)) / 2 + 0.02)

    def parts(*objects):
        scores = score(view(*objects), asked, true)
        return tuple(scores[name] for name in ("one_missing", "exchanged", "merged", "blended"))

    assert parts(torus, cone) == (0, 0, 0, 0)
    assert parts(torus) == (1, 0, 1, 0)
    assert parts(thing("torus", BLUE, torus.mask), cone) == (0, 1, 0, 0)
    assert parts(thing("box", between, torus.mask)) == (0, 0, 1, 1), (
        "one thing of neither category, in a colour of both"
    )
    assert parts(thing("torus", between, torus.mask), cone) == (0, 0, 0, 1)


def test_a_subject_beside_words():
    torus, cone = thing("torus", RED, box(0, 0, 6, 4)), thing("cone", BLUE, box(2, 8, 10, 4))
    asked, true = case(("torus", "red"), ("cone", "blue"), relation="left"), truth(torus, cone)
    score = KINDS["subject_beside_words"].score
    right = score(view(torus, cone), asked, true)
    assert (right["all"], right["distance"]) == (1.0, 0.0)
    tinted = score(view(torus, thing("cone", RED, cone.mask)), asked, true)
    assert (tinted["present"], tinted["colour"], tinted["all"]) == (1.0, 0.0, 0.0), "the cone took the subject's colour"
    assert score(view(torus), asked, true)["present"] == 0.0


def test_geometry_judges_the_object_in_its_place():
    true = thing("torus", RED, box(2, 2, 6, 6))
    made = thing("cone", RED, box(2, 4, 6, 6))
    larger = thing("sphere", BLUE, box(9, 0, 7, 16))
    scores = KINDS["geometry"].score(view(made, larger), case(("torus", "red")), truth(true))
    assert scores["colour"] == 1.0
    assert scores["object_iou"] == pytest.approx(24 / (36 + 36 - 24 + 112))
    assert KINDS["geometry"].score(view(), case(("torus", "red")), truth(true)) == {"colour": 0.0, "object_iou": 0.0}


def test_floor_and_wall_are_measured_beside_the_object():
    torus = thing("torus", RED, box(0, 0, 6, 6))
    floor, wall = box(12, 0, 4, 16), box(0, 8, 12, 8)
    asked = case(("torus", "red"))
    both = replace(truth(torus), ground={"floor": np.array((0.2, 0.2, 0.2)), "wall": np.array((0.6, 0.2, 0.2))})
    made = view(torus, ground=(("floor", (0.2, 0.2, 0.2), floor), ("wall", (0.6, 0.6, 0.5), wall)))
    scores = KINDS["style.scene"].score(made, asked, both)
    assert (scores["category"], scores["colour"]) == (1.0, 1.0)
    assert scores["distance"] == pytest.approx((0 + 0.5) / 2, abs=0.003), "0.4 and 0.3 apart, over two regions"
    alone = replace(both, ground={"wall": both.ground["wall"]})
    assert KINDS["style.wall"].score(made, asked, alone)["distance"] == pytest.approx(0.5, abs=0.003)
    nothing = KINDS["style.wall"].score(view(torus), asked, alone)["distance"]
    assert nothing == pytest.approx(np.linalg.norm(view(torus).mean - both.ground["wall"])), "no wall is not left out"


def test_an_object_in_all_the_words_that_captions_have_for_it():
    captions = ("a torus", "the box near a small shiny red torus", "a photo of a large torus before the box", "a box")
    spans = tuple(None if "torus" not in text else span_of(text) for text in captions)
    one = Named("torus", "red", Entity("red torus", spans))
    assert describe(captions, one) == "a small shiny red torus"
    assert (
        describe(("torus of an arch", "an arch"), Named("arch", "orange", Entity("", (None, (3, 7)))))
        == "an orange arch"
    )


def span_of(text):
    words = "red torus" if "red torus" in text else "torus"
    return text.index(words), text.index(words) + len(words)


def test_contradictions_follow_words_or_picture():
    asked = case(("torus", "red"), ("torus", "blue"))
    true = truth(thing("torus", RED, box(0, 0, 8, 8)))
    words = Contradiction().score(view(thing("torus", BLUE, box(0, 0, 8, 8))), asked, true)
    assert (words["text"], words["subject"]) == (1.0, 0.0)
    picture = Contradiction().score(view(thing("torus", RED, box(0, 0, 8, 8))), asked, true)
    assert (picture["text"], picture["subject"], picture["distance"]) == (0.0, 1.0, 0.0)
