"""Subjects of a split with all pictures that show them: what a model can be prepared with and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmdit.errors import UserError
from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.cases import Named, PromptCase, PromptedSplit, article
from mmdit.metrics.prompts.instrument import Instrument, Seen
from mmdit.metrics.prompts.likeness import thumbnail_distance
from mmdit.metrics.prompts.pictures import RealPictures
from mmdit.metrics.prompts.scores import ScoreTable
from mmdit.metrics.prompts.subject_kinds import OneSubject

LEAST_PICTURES = 3


@dataclass(frozen=True)
class KnownSubject:
    """A subject that samples of a split show.

    samples: their numbers. The last one is kept for judging, and nothing is prepared with it: of those in which the subject is
    the largest object, where there are any, the last in the split's order, which the others are in.
    named: the subject there; reference: its clearest picture.
    """

    samples: tuple[int, ...]
    named: Named
    reference: Path

    @property
    def words(self) -> str:
        """ "a red torus"."""
        words = " ".join(word for word in (self.named.colour, self.named.category) if word)
        return f"{article(words)} {words}"

    @property
    def template(self) -> str:
        """ "a {torus}"."""
        return f"{article(self.named.category)} {{{self.named.category}}}"


def known_subjects(split: PromptedSplit, count: int) -> list[KnownSubject]:
    """The first ``count`` subjects that at least three samples show. Entities that share another picture are one subject.

    Of pictures the largest object is judged, so the real picture must be one in which that is the subject.

    Raises:
        UserError: the split has none.
    """
    number_of: dict[Path, int] = {}  # picture -> its subject
    shown: dict[int, list[tuple[int, Named]]] = {}
    objects_of: dict[int, list[Named]] = {}
    for index, _, objects in split:
        objects_of[index] = objects
        for one in objects:
            if not one.entity.images or one.entity.mask is None:
                continue
            met = sorted({number_of[path] for path in one.entity.images if path in number_of}) or [len(shown)]
            kept = shown.setdefault(met[0], [])
            for other in met[1:]:
                kept += shown[other]
                shown[other] = []
                number_of = {path: met[0] if number == other else number for path, number in number_of.items()}
            kept.append((index, one))
            number_of |= dict.fromkeys(one.entity.images, met[0])
    found: list[KnownSubject] = []
    for places in shown.values():
        there = dict(places)
        if len(there) >= LEAST_PICTURES and len(found) < count:
            _, last = max((_is_largest(split, one, objects_of[index]), index) for index, one in there.items())
            samples = (*sorted(there.keys() - {last}), last)
            found.append(KnownSubject(samples, there[last], there[last].entity.images[0]))
    if not found:
        raise UserError(
            f"no subject of the split has {LEAST_PICTURES} pictures: render with --composition subjects, or take another split"
        )
    return found


def _is_largest(split: PromptedSplit, one: Named, objects: Sequence[Named]) -> bool:
    """Whether no other object of its sample covers more pixels."""
    own = split.mask(one).sum()
    return all(split.mask(each).sum() <= own for each in objects if each.entity.mask is not None)


class SubjectScores:
    """Judges pictures of one known subject.

    category, colour, distance: as in ``OneSubject``, to the colour in the picture that is kept for judging.
    nearest: the root mean square between the thumbnails of a picture and of the nearest one that shows the subject beforehand:
    small where that is repeated.
    """

    metrics: ClassVar[tuple[str, ...]] = (*OneSubject.metrics, "nearest")

    def __init__(self, subject: KnownSubject, split: PromptedSplit, instrument: Instrument) -> None:
        self.subject, self.instrument = subject, instrument
        self.kind = OneSubject(named=True)
        self.case = PromptCase(subject.template, (subject.named,), None, subject.samples[-1], (subject.reference,))
        pictures = RealPictures(split, instrument)
        self.truth = self.kind.truth(self.case, pictures)
        self.known = [*map(pictures.read, subject.samples[:-1]), pictures.read(subject.reference)]

    def add(self, table: ScoreTable, pictures: Sequence[Array]) -> None:
        """Add the scores of pictures, uint8 (H, W, 3), to a table of ``metrics``."""
        for seen in self.instrument.look(pictures):
            table.add({**self.kind.score(seen, self.case, self.truth), "nearest": self._nearest(seen)})

    def _nearest(self, seen: Seen) -> float:
        return float(np.min([thumbnail_distance(seen.picture, known) for known in self.known]))
