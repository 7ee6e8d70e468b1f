"""What the scenes of a split are for, chosen by name from ``COMPOSITIONS``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from mmdit.errors import UserError
from mmdit.sources.scenes.layout import Layout, category_of, sample_layout
from mmdit.sources.scenes.subjects import alone_scenes, lone_subject, sample_subject_layout


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


COMPOSITIONS: dict[str, Composition] = {"main": MainObject(), "subjects": Subjects()}
