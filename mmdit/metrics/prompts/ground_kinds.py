"""Floors and walls: by words, "a red torus on a green floor", and by a picture, "on a {floor}", "against a {wall}"; both
together by a picture, "in the style of the {scene}"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmdit.colours import colour_name
from mmdit.data.prompts import CaptionedSample, Entity
from mmdit.metrics.prompts.cases import Named, PromptCase, PromptedSplit, article, captions_of, named
from mmdit.metrics.prompts.instrument import Seen
from mmdit.metrics.prompts.pictures import RealPictures, Source
from mmdit.metrics.prompts.prompt_kind import PromptKind, Truth
from mmdit.metrics.prompts.scores import Scores
from mmdit.metrics.prompts.text_kinds import OneObject, score_main, text_case
from mmdit.metrics.prompts.views import Cut, Shown
from mmdit.modalities import IMAGE
from mmdit.names import BACKGROUND_CLASSES, GROUND_LEADS, STYLE_WORD

MIN_SIDE = 8  # pixels of a crop


class NamedGround(PromptKind):
    """A caption of one object with its colour, and of the colour of the floor or the wall.

    category, colour: of the largest object, as in ``OneObject``; ground: the mean colour of what the instrument sees of the
    floor or the wall has the name that the words say. Light tints it: real pictures say how often that is so of them.

    Args:
        name: a name of ``BACKGROUND_CLASSES``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("category", "colour", "ground")
    higher_is_better: ClassVar[frozenset[str]] = frozenset(metrics)

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            ground = next((named(each) for each in sample.entities if each.noun == self.name), None)
            if ground is None or ground.colour is None:
                continue
            for caption in captions_of(sample, objects, in_words=True):
                span = ground.entity.spans[caption.number]
                said = span is not None and ground.colour in caption.text[slice(*span)].split()
                if len(caption.objects) == 1 and all(caption.said) and said:
                    yield text_case(replace(caption, objects=(*caption.objects, ground)), index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        one, ground = case.objects
        mask = seen.ground.get(self.name)
        is_seen = mask is not None and bool(mask.any())
        right = is_seen and colour_name(seen.ground_colour(self.name)) == ground.colour
        return {**score_main(seen, one), "ground": float(right)}


class Ground(PromptKind):
    """An object by words, and the floor, the wall or both by a picture. The object is like none beside which these are shown.

    A floor or a wall is shown by a crop that has nothing else on it; both by a whole picture.
    category, colour: of the largest object, as in ``OneObject``.
    distance: of the mean colour of floor and wall, where the instrument sees them, to the reference's, Euclidean, sRGB in [0, 1].

    Args:
        name: a name of ``BACKGROUND_CLASSES``, or ``STYLE_WORD``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("category", "colour", "distance")
    higher_is_better: ClassVar[frozenset[str]] = frozenset({"category", "colour"})
    of_sample = ("category", "colour")

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        asked = list(OneObject().find(split))
        for index, sample, objects in split:
            picture = split.samples.samples[index].files[IMAGE]
            assert picture is not None
            shown = self._shown(sample, picture)
            if shown is None:
                continue
            turned = [asked[(index + number) % len(asked)] for number in range(len(asked))]  # not all the same object
            case = next((case for case in turned if _is_unlike(case.objects[0], objects)), None)
            if case is not None:
                (one,), (reference, other) = case.objects, shown
                words = f"{article(one.colour or one.category)} {one.colour} {one.category} {GROUND_LEADS[self.name]}"
                yield replace(
                    case,
                    template=f"{words} {{{self.name}}}",
                    wording=f"{words} {self.name}",
                    references=(reference,),
                    others=(other,),
                )

    def _shown(self, sample: CaptionedSample, picture: Path) -> tuple[Shown, Path] | None:
        """What shows the ground of a sample, and another picture that has it."""
        entities = [entity for entity in sample.entities if entity.images and entity.noun in GROUND_LEADS]
        if self.name == STYLE_WORD:
            return (entities[0].images[0], picture) if entities else None
        own = next((entity for entity in entities if entity.noun == self.name), None)
        if own is None or not _has_room(own, cut := Cut(picture, own)):
            return None
        return cut, own.images[0]

    def truth(self, case: PromptCase, pictures: RealPictures) -> Truth:
        """With the colours of the reference."""
        (reference,) = case.references
        if self.name == STYLE_WORD:
            (seen,) = pictures.look([reference])
            ground = {name: seen.ground_colour(name) for name in BACKGROUND_CLASSES}
        else:
            ground = {self.name: pictures.read(reference).mean(axis=(0, 1)) / 255}
        return replace(super().truth(case, pictures), ground=ground)

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        distances = [np.linalg.norm(seen.ground_colour(name) - colour) for name, colour in truth.ground.items()]
        return {**score_main(seen, case.objects[0]), "distance": float(np.mean(distances))}

    def other(self, case: PromptCase, cases: Sequence[PromptCase]) -> Source | None:
        """The picture of another ground."""
        own = {*case.references, *case.others}
        return next((each.others[0] for each in cases if own.isdisjoint((*each.references, *each.others))), None)


def _has_room(entity: Entity, cut: Cut) -> bool:
    return entity.mask is not None and min(cut.read().shape[:2]) >= MIN_SIDE


def _is_unlike(one: Named, objects: Sequence[Named]) -> bool:
    """Whether an object has neither category nor colour of others."""
    return all(one.category != each.category and one.colour != each.colour for each in objects)
