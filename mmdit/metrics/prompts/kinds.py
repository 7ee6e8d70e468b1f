"""What is asked of a model's prompts, kind by kind: which prompts, and what of a picture is right. The table is ``KINDS``.

Every kind turns the instrument's view of one picture into numbers, whoever made the picture: the model, the controls, or the
renderer. A number that has no meaning for a picture is None and not averaged: the colours and the relation of two objects
are those of pictures that show both, as in VISOR (arXiv 2212.10015), so present x colour x relation is about all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.cases import (
    CaptionedObjects,
    Named,
    PromptCase,
    PromptedSplit,
    article,
    captions_of,
)
from mmdit.metrics.prompts.instrument import RELATIONS, Seen, SeenObject
from mmdit.names import RELATION_WORDS
from mmdit.prompt import Prompt

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Truth:
    """What the true picture of a case has, at the instrument's size.

    masks: of the objects asked for, (H, W) bool; colours: (3,) mean sRGB in [0, 1] of each; foreground: (H, W) bool, all objects.
    """

    masks: tuple[Array, ...]
    colours: tuple[Array, ...]
    foreground: Array


class PromptKind(ABC):
    """One kind of prompt. ``metrics``: names of what ``score`` measures; ``given``: the kind of map given beside the prompt."""

    metrics: ClassVar[tuple[str, ...]]
    given: ClassVar[str | None] = None

    @abstractmethod
    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        """All prompts of this kind that a split can be made to ask, in the order in which they are taken."""

    @abstractmethod
    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        """What of a picture is right: 0 or 1, or a number, or None."""

    def cases(self, split: PromptedSplit, count: int) -> list[PromptCase]:
        """The first ``count`` prompts; fewer where the split has no more."""
        return list(islice(self.find(split), count))


def colour_distance(seen: Seen, thing: SeenObject | None, colour: Array) -> float:
    """Euclidean distance in [0, 1]^3 sRGB of an object's mean colour to a true one.

    Where no object is seen, the whole picture's mean colour takes its place, so that no picture is left out.
    """
    return float(np.linalg.norm((seen.mean if thing is None else thing.colour) - colour))


def score_objects(seen: Seen, objects: Sequence[tuple[str | None, str]], relation: str | None) -> Scores:
    """Whether objects, (colour, category), are all there, in their colours, and the first stands to the second as ``relation``.

    Colours and relation are of objects that are all there; a relation of None is not judged.
    """
    found = [each for _, category in objects if (each := seen.find(category)) is not None]
    if len(found) < len(objects):
        return {"present": 0.0, "colour": None, "relation": None, "all": 0.0}
    colours = [each.colour_name for each in found] == [colour for colour, _ in objects]
    stands = None if relation is None else RELATIONS[relation](*found)
    return {
        "present": 1.0,
        "colour": float(colours),
        "relation": None if stands is None else float(stands),
        "all": float(colours and stands is not False),
    }


class OneObject(PromptKind):
    """A caption of one object and its colour. The largest object of the picture is judged, whatever it is."""

    metrics: ClassVar[tuple[str, ...]] = ("category", "colour")

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects):
                if len(caption.objects) == 1 and all(caption.said):
                    yield _text_case(caption, index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        wanted, main = case.objects[0], seen.main
        return {
            "category": float(main is not None and main.category == wanted.category),
            "colour": float(main is not None and main.colour_name == wanted.colour),
        }


class TwoObjects(PromptKind):
    """A caption of two objects of different categories, their colours, and how they stand."""

    metrics: ClassVar[tuple[str, ...]] = ("present", "colour", "relation", "all")

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects):
                if _is_pair(caption.objects) and all(caption.said) and caption.relation is not None:
                    yield _text_case(caption, index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        assert case.relation is not None
        return score_objects(seen, [(wanted.colour, wanted.category) for wanted in case.objects], case.relation)


class OneSubject(PromptKind):
    """A subject by its picture, in words that leave its colour out; ``named`` = the words have its category.

    distance: of the mean colour of the largest object to the subject's in the true picture, see ``colour_distance``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("category", "colour", "distance")

    def __init__(self, named: bool) -> None:
        self.named = named

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, _, objects in split:
            for one in objects:
                if one.entity.images and one.entity.mask is not None:
                    word = f"{article(one.category)} {{{one.category}}}" if self.named else "a {}"
                    yield _subject_case(word, (one,), None, index)

    def cases(self, split: PromptedSplit, count: int) -> list[PromptCase]:
        """Subjects in turn: none is shown twice before all are; first those with a further picture to compare with."""
        used: Counter[tuple[Path, bool]] = Counter()
        ranked = []
        for order, case in enumerate(self.find(split)):
            last = case.others == case.references
            ranked.append((last, used[case.references[0], last], order, case))
            used[case.references[0], last] += 1
        return [case for *_, case in sorted(ranked, key=lambda entry: entry[:3])[:count]]

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        wanted, main = case.objects[0], seen.main
        return {
            "category": float(main is not None and main.category == wanted.category),
            "colour": float(main is not None and main.colour_name == wanted.colour),
            "distance": colour_distance(seen, main, truth.colours[0]),
        }


class TwoSubjects(TwoObjects):
    """Two subjects by their pictures, and how they stand; the words leave their colours out.

    fused: only one of them is there, or one has the other's colour; distance: of each one's colour, over those that are there.
    """

    metrics: ClassVar[tuple[str, ...]] = (*TwoObjects.metrics, "fused", "distance")

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects):
                shown = all(one.entity.images and one.entity.mask is not None for one in caption.objects)
                if _is_pair(caption.objects) and caption.relation is not None and shown:
                    first, second = (f"{article(one.category)} {{{one.category}}}" for one in caption.objects)
                    words = f"{first} {RELATION_WORDS[caption.relation][0]} {second}"
                    yield _subject_case(words, caption.objects, caption.relation, index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        found = [seen.find(wanted.category) for wanted in case.objects]
        exchanged = [
            each is not None and each.colour_name == other.colour != own.colour
            for each, own, other in zip(found, case.objects, case.objects[::-1], strict=True)
        ]
        alone = (found[0] is None) != (found[1] is None)
        distances = [
            colour_distance(seen, each, colour)
            for each, colour in zip(found, truth.colours, strict=True)
            if each is not None
        ]
        return {
            **super().score(seen, case, truth),
            "fused": float(alone or any(exchanged)),
            "distance": float(np.mean(distances)) if distances else None,
        }


class Geometry(OneObject):
    """A caption of one object and its colour, with the true depth map given.

    colour: of the object that covers most of the true one's place; object_iou: pixels of objects against the true ones,
    over a picture.
    """

    metrics: ClassVar[tuple[str, ...]] = ("colour", "object_iou")
    given = "depth"

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        return (case for case in super().find(split) if case.objects[0].entity.mask is not None)

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        there = seen.at(truth.masks[0])
        union = (seen.foreground | truth.foreground).sum()
        return {
            "colour": float(there is not None and there.colour_name == case.objects[0].colour),
            "object_iou": float((seen.foreground & truth.foreground).sum() / union) if union else None,
        }


class Contradiction(OneSubject):
    """For the sweep of the fusing scale: the words in braces name another colour than the subject's picture shows.

    text: the picture shows the category in the colour of the words; subject: in the colour of the picture.
    """

    metrics: ClassVar[tuple[str, ...]] = ("text", "subject", "distance")

    def __init__(self) -> None:
        super().__init__(named=True)

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        colours = sorted({one.colour for _, _, objects in split for one in objects if one.colour})
        for case in super().find(split):
            (one,) = case.objects
            others = [colour for colour in colours if colour != one.colour]
            if one.colour is None or not others:
                continue
            said = others[case.sample % len(others)]
            words = f"{article(said)} {{{said} {one.category}}}"
            asked = Named(one.category, said, one.entity)
            yield PromptCase(words, (one, asked), None, case.sample, case.references, case.others, words)

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        (shown, asked), main = case.objects, seen.main
        right = main is not None and main.category == shown.category
        colour = None if main is None else main.colour_name
        return {
            "text": float(right and colour == asked.colour),
            "subject": float(right and colour == shown.colour),
            "distance": colour_distance(seen, main, truth.colours[0]),
        }


# name in the report, under "prompts" and under each control -> what is asked
KINDS: dict[str, PromptKind] = {
    "text.one": OneObject(),
    "text.two": TwoObjects(),
    "subject": OneSubject(named=False),
    "subject_named": OneSubject(named=True),
    "subjects.two": TwoSubjects(),
    "geometry": Geometry(),
}


def _is_pair(objects: Sequence[Named]) -> bool:
    return len(objects) == 2 and objects[0].category != objects[1].category


def _text_case(caption: CaptionedObjects, index: int) -> PromptCase:
    return PromptCase(Prompt(caption.text).template, caption.objects, caption.relation, index, wording=caption.text)


def _subject_case(words: str, objects: tuple[Named, ...], relation: str | None, index: int) -> PromptCase:
    references = tuple(one.entity.images[0] for one in objects)
    others = tuple((one.entity.images * 2)[1] for one in objects)
    wording = " and ".join(f"{article(one.category)} {one.category}" for one in objects)
    return PromptCase(words, objects, relation, index, references, others, wording)
