"""What the scenes of a split are for, chosen by name from ``COMPOSITIONS``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from mmdit.errors import UserError
from mmdit.sources.scenes.layout import Layout, category_of, sample_layout
from mmdit.sources.scenes.subjects import (
    SCENES_PER_BLOCK,
    alone_scenes,
    lone_subject,
    same_ground,
    sample_subject_layout,
)


class Composition(ABC):
    """Numbered scenes of a split; each is a function of (seed, split, index) and the settings alone."""

    @abstractmethod
    def layout(self, seed: int, split: str, index: int, variety: bool, max_distractors: int) -> Layout:
        """Draw scene ``index``."""

    @abstractmethod
    def category(self, seed: int, split: str, index: int) -> str | None:
        """The category of scene ``index``; None where it has two subjects and no main one."""

    def references(self, layout: Layout, index: int, number: int) -> list[int]:
        """Other scenes that show ``layout.objects[number]``, the clearest one first."""
        return []

    def same_ground(self, index: int) -> int | None:
        """Another scene with the same floor and wall, if there is one."""
        return None


class MainObject(Composition):
    """One main object of a category, and smaller ones beside it."""

    def layout(self, seed: int, split: str, index: int, variety: bool, max_distractors: int) -> Layout:
        return sample_layout(seed, split, index, variety, max_distractors)

    def category(self, seed: int, split: str, index: int) -> str | None:
        return category_of(seed, split, index)


class Subjects(Composition):
    """Subjects that come back, alone and in pairs in the four relations (``mmdit.sources.scenes.subjects``)."""

    def layout(self, seed: int, split: str, index: int, variety: bool, max_distractors: int) -> Layout:
        if max_distractors > 1:
            raise UserError(f"max_distractors is {max_distractors}: scenes of subjects have 1 at most, or give 'main'")
        return sample_subject_layout(seed, split, index, variety)

    def category(self, seed: int, split: str, index: int) -> str | None:
        subject = lone_subject(seed, split, index)
        return None if subject is None else subject.category

    def references(self, layout: Layout, index: int, number: int) -> list[int]:
        if number >= len(layout.subjects):
            return []
        crowded, alone = alone_scenes(layout.subjects[number])
        return [scene for scene in (alone, crowded) if scene != index]

    def same_ground(self, index: int) -> int | None:
        return same_ground(index)


class Mixed(Composition):
    """Both kinds in one split, by turns: a block of scenes of one main object, a block of subjects."""

    parts = (MainObject(), Subjects())

    def _part(self, index: int) -> tuple[Composition, int]:
        """The composition that scene ``index`` is from, and its number there."""
        block, place = divmod(index, SCENES_PER_BLOCK)
        return self.parts[block % 2], SCENES_PER_BLOCK * (block // 2) + place

    def _index(self, index: int, scene: int) -> int:
        """The number here of scene ``scene`` of the composition that scene ``index`` is from."""
        block, place = divmod(scene, SCENES_PER_BLOCK)
        kind = index // SCENES_PER_BLOCK % 2
        return SCENES_PER_BLOCK * (2 * block + kind) + place

    def layout(self, seed: int, split: str, index: int, variety: bool, max_distractors: int) -> Layout:
        part, scene = self._part(index)
        return part.layout(seed, split, scene, variety, max_distractors)

    def category(self, seed: int, split: str, index: int) -> str | None:
        part, scene = self._part(index)
        return part.category(seed, split, scene)

    def references(self, layout: Layout, index: int, number: int) -> list[int]:
        part, scene = self._part(index)
        return [self._index(index, other) for other in part.references(layout, scene, number)]

    def same_ground(self, index: int) -> int | None:
        part, scene = self._part(index)
        other = part.same_ground(scene)
        return None if other is None else self._index(index, other)


COMPOSITIONS: dict[str, Composition] = {"main": MainObject(), "subjects": Subjects(), "mixed": Mixed()}
