"""Prompts of words alone: one object, two, and one beside a depth map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from mmdit.metrics.prompts.cases import CaptionedObjects, Named, PromptCase, PromptedSplit, captions_of
from mmdit.metrics.prompts.instrument import RELATIONS, Seen
from mmdit.metrics.prompts.prompt_kind import PromptKind, Truth
from mmdit.metrics.prompts.scores import Scores
from mmdit.prompt import Prompt


def score_main(seen: Seen, wanted: Named) -> Scores:
    """Whether the largest object of a picture, whatever it is, has a category, and a colour."""
    main = seen.main
    return {
        "category": float(main is not None and main.category == wanted.category),
        "colour": float(main is not None and main.colour_name == wanted.colour),
    }


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
    higher_is_better: ClassVar[frozenset[str]] = frozenset(metrics)

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects, in_words=True):
                if len(caption.objects) == 1 and all(caption.said):
                    yield text_case(caption, index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        return score_main(seen, case.objects[0])


class TwoObjects(PromptKind):
    """A caption of two objects of different categories, their colours, and how they stand."""

    metrics: ClassVar[tuple[str, ...]] = ("present", "colour", "relation", "all")
    higher_is_better: ClassVar[frozenset[str]] = frozenset(metrics)

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects, in_words=True):
                if is_pair(caption.objects) and all(caption.said) and caption.relation is not None:
                    yield text_case(caption, index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        assert case.relation is not None
        return score_objects(seen, [(wanted.colour, wanted.category) for wanted in case.objects], case.relation)


class Geometry(OneObject):
    """A caption of one object and its colour, with the true depth map given.

    colour: of the object that covers most of the true one's place; object_iou: pixels of objects against the true ones,
    over a picture.
    """

    metrics: ClassVar[tuple[str, ...]] = ("colour", "object_iou")
    higher_is_better: ClassVar[frozenset[str]] = frozenset(metrics)
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


def is_pair(objects: Sequence[Named]) -> bool:
    """Whether these are two objects of different categories."""
    return len(objects) == 2 and objects[0].category != objects[1].category


def text_case(caption: CaptionedObjects, index: int) -> PromptCase:
    """A caption of the sample with number ``index`` as it stands, without braces."""
    return PromptCase(Prompt(caption.text).template, caption.objects, caption.relation, index, wording=caption.text)
