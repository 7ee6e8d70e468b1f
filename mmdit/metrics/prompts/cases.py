"""Prompts to judge a model by, made from a split's own ``prompts.jsonl``: what is asked, and which true picture shows it.

What a prompt names is known by construction: an entity whose phrase ends with a category is an object, and the word before is
its colour ("red torus"). Subjects are shown by another picture of theirs, never by a part of the true one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmdit.colours import COLOUR_NAMES
from mmdit.data.lines import Rules
from mmdit.data.prompted import read_mask
from mmdit.data.prompts import CaptionedSample, Entity, read_prompts
from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.views import Shown, read_shown
from mmdit.metrics.samples import EvaluationSamples, GroundTruth
from mmdit.modalities import IMAGE
from mmdit.names import RELATION_WORDS, STYLE_WORD


@dataclass(frozen=True)
class Named:
    """A thing that a caption may name. colour: None where the phrase has none; entity: its place and pictures."""

    category: str
    colour: str | None
    entity: Entity


def named(entity: Entity) -> Named:
    """What a phrase names, by its last two words: "checkered red torus" is a red torus."""
    before = entity.phrase.split()[-2:-1]
    return Named(entity.noun, before[0] if before and before[0] in COLOUR_NAMES else None, entity)


@dataclass(frozen=True)
class PromptCase:
    """One prompt and what it asks for.

    Args:
        template: with a brace for each of ``references``.
        objects: what is asked for, in the order of the text.
        relation: of the first object to the second, a name of ``RELATION_WORDS``, or None.
        sample: number of the sample whose picture is the true one.
        references: what shows each subject, another picture than the true one.
        others: a further picture of each subject, where there is one; else the reference again.
        wording: what a text encoder is asked to compare the picture with.
        in_words: the subjects are in words, without braces: ``references`` are for the controls alone.
    """

    template: str
    objects: tuple[Named, ...]
    relation: str | None
    sample: int
    references: tuple[Shown, ...] = ()
    others: tuple[Shown, ...] = ()
    wording: str = ""
    in_words: bool = False

    @property
    def subjects(self) -> list[Image.Image]:
        """The references that the model is given, read."""
        return [] if self.in_words else [Image.fromarray(read_shown(shown)) for shown in self.references]


class PromptedSplit:
    """A split's captions, and its true pictures and masks.

    Args:
        samples: the whole split, in the drawn order; of it the first samples that fit are taken.
        split: its name.

    Raises:
        UserError: lines of ``prompts.jsonl`` that are wrong.
    """

    def __init__(self, samples: EvaluationSamples, split: str) -> None:
        self.samples = samples
        self.categories = tuple(samples.info.categories)
        info = samples.info
        rules = Rules(info.root, split, None, None, allow_outside=info.allow_outside)
        self.prompts = read_prompts(rules, {sample.id for sample in samples.samples})

    def __len__(self) -> int:
        """Samples with captions."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[tuple[int, CaptionedSample, list[Named]]]:
        """Number, captions and objects of each sample that has these and a picture."""
        for index, sample in enumerate(self.samples.samples):
            prompted = self.prompts.get(sample.id)
            if prompted is None or sample.files.get(IMAGE) is None:
                continue
            if objects := self._named(prompted):
                yield index, prompted, objects

    def _named(self, sample: CaptionedSample) -> list[Named]:
        return [named(entity) for entity in sample.entities if entity.noun in self.categories]

    def truth(self, index: int) -> GroundTruth:
        """The true maps of a sample, at the model's size."""
        return self.samples[index]

    def mask(self, named: Named) -> Array:
        """Where an object is in its own picture, bool (H, W) at the model's size."""
        assert named.entity.mask is not None
        mask = read_mask(named.entity.mask)
        draw = self.samples.transform.draw(*mask.shape)
        box = (draw.left, draw.top, draw.left + draw.crop_width, draw.top + draw.crop_height)
        resized = Image.fromarray(mask).resize((draw.width, draw.height), Image.Resampling.NEAREST, box=box)
        return np.asarray(resized, dtype=bool)

    def foreground(self, index: int) -> Array:
        """Where any object of a sample is, named by a caption or not, bool (H, W) at the model's size."""
        objects = self._named(self.prompts[self.samples.samples[index].id])
        return np.any([self.mask(one) for one in objects if one.entity.mask is not None], axis=0)


@dataclass(frozen=True)
class CaptionedObjects:
    """A caption with the objects that it names, in the order of its text.

    number: of the caption in its sample; said: for each object whether its colour is in the words; relation: of the first to
    the second, None = not said.
    """

    number: int
    text: str
    objects: tuple[Named, ...]
    said: tuple[bool, ...]
    relation: str | None


def captions_of(
    sample: CaptionedSample, objects: Sequence[Named], *, in_words: bool = False
) -> Iterator[CaptionedObjects]:
    """Each caption of a sample that names at least one of the objects.

    ``in_words``: that is asked for as it stands. "In the style of the scene" means nothing without a picture: it is left out.
    """
    styles = [entity for entity in sample.entities if entity.phrase == STYLE_WORD] if in_words else []
    for number, text in enumerate(sample.captions):
        if any(style.spans[number] is not None for style in styles):
            continue
        found = [(span, each) for each in objects if (span := each.entity.spans[number]) is not None]
        found.sort(key=lambda pair: pair[0])
        if not found:
            continue
        between = text[found[0][0][1] : found[1][0][0]] if len(found) > 1 else ""
        said = tuple(each.colour is not None and each.colour in text[slice(*span)].split() for span, each in found)
        yield CaptionedObjects(number, text, tuple(each for _, each in found), said, relation_in(between))


def relation_in(words: str) -> str | None:
    """The relation that the words between two objects say; None where they say none."""
    found = [
        name
        for name, sayings in RELATION_WORDS.items()
        if any(re.search(rf"\b{re.escape(saying)}\b", words) for saying in sayings)
    ]
    return found[0] if len(found) == 1 else None


def article(word: str) -> str:
    """ "a" or "an" before a word."""
    return "an" if word[0] in "aeiou" or word.startswith("hour") else "a"
