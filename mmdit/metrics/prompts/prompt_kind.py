"""What every kind of prompt is: which prompts, what of a picture is right, and which real pictures show that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import numpy as np

from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.cases import PromptCase, PromptedSplit
from mmdit.metrics.prompts.instrument import Seen, SeenObject
from mmdit.metrics.prompts.pictures import RealPictures, Source
from mmdit.metrics.prompts.scores import Scores


@dataclass(frozen=True)
class Truth:
    """What the true picture of a case has, at the instrument's size.

    masks: of the objects asked for, (H, W) bool; colours: (3,) mean sRGB in [0, 1] of each; foreground: (H, W) bool, all objects;
    ground: what the reference shows of floor and wall, name -> (3,) mean sRGB, where the kind asks for these.
    """

    masks: tuple[Array, ...]
    colours: tuple[Array, ...]
    foreground: Array
    ground: Mapping[str, Array] = field(default_factory=dict)


def any_case(case: PromptCase) -> bool:
    """Every prompt can be asked."""
    return True


class PromptKind(ABC):
    """One kind of prompt.

    metrics: names of what ``score`` measures; higher_is_better: of these; given: the kind of map given beside the prompt.
    of_sample: those metrics for which the case's own sample is the real picture, and not the other picture of the subject.
    has_real: whether some stored picture of the subject shows what is asked.
    noise: the kind whose noise this one is drawn with, because it asks for the same in another way; "" = its own.
    """

    metrics: ClassVar[tuple[str, ...]]
    higher_is_better: ClassVar[frozenset[str]]
    given: ClassVar[str | None] = None
    of_sample: ClassVar[tuple[str, ...]] = ()
    has_real: ClassVar[bool] = True
    noise: ClassVar[str] = ""

    @abstractmethod
    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        """All prompts of this kind that a split can be made to ask, in the order in which they are taken."""

    @abstractmethod
    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        """What of a picture is right: 0 or 1, or a number, or None."""

    def cases(
        self, split: PromptedSplit, count: int, can_ask: Callable[[PromptCase], bool] = any_case
    ) -> list[PromptCase]:
        """The first ``count`` prompts that can be asked; fewer where the split has no more."""
        return list(islice(filter(can_ask, self.find(split)), count))

    def truth(self, case: PromptCase, pictures: RealPictures) -> Truth:
        """What the true picture of a case has."""
        masks = tuple(pictures.split.mask(one) for one in case.objects if one.entity.mask is not None)
        picture = pictures.read(case.sample)
        colours = tuple(picture[mask].mean(axis=0) / 255 for mask in masks)
        resized = pictures.instrument.resize_mask
        return Truth(tuple(map(resized, masks)), colours, resized(pictures.split.foreground(case.sample)))

    def other(self, case: PromptCase, cases: Sequence[PromptCase]) -> Source | None:
        """A picture of another subject than the case's, from those of ``cases``: of its category, and of another colour."""
        own = case.objects[0]
        for each in cases:
            if each.objects[0].category == own.category and each.objects[0].colour != own.colour:
                return each.references[0]
        return None


def colour_distance(seen: Seen, thing: SeenObject | None, colour: Array) -> float:
    """Euclidean distance in [0, 1]^3 sRGB of an object's mean colour to a true one.

    Where no object is seen, the whole picture's mean colour takes its place, so that no picture is left out.
    """
    return float(np.linalg.norm((seen.mean if thing is None else thing.colour) - colour))
