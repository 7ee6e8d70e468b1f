"""Subjects by their pictures: one (alone, named, small, rare, or in words instead), two, and one that the words contradict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np

from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.cases import Named, PromptCase, PromptedSplit, article, captions_of
from mmdit.metrics.prompts.instrument import Seen, SeenObject
from mmdit.metrics.prompts.prompt_kind import PromptKind, Truth, any_case, colour_distance
from mmdit.metrics.prompts.scores import Scores
from mmdit.metrics.prompts.text_kinds import TwoObjects, is_pair, score_main
from mmdit.metrics.prompts.views import Shown, Shrunk
from mmdit.names import RELATION_WORDS
from mmdit.prompt import parse_text

SMALL_SIDE = 16  # pixels
RARE_SHARE = 0.2  # of the subjects
# What stands between the last article and an object's words.
_BEFORE = re.compile(r"\b(?:an?|the)\s+((?:(?!(?:an?|the)\b)\w+\s+)*)$")


class OneSubject(PromptKind):
    """A subject by its picture, in words that leave its colour out; ``named`` = the words have its category.

    distance: of the mean colour of the largest object to the subject's in the true picture, see ``colour_distance``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("category", "colour", "distance")
    higher_is_better: ClassVar[frozenset[str]] = frozenset({"category", "colour"})

    def __init__(self, named: bool) -> None:
        self.named = named

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, _, objects in split:
            for one in objects:
                if one.entity.images and one.entity.mask is not None:
                    word = f"{article(one.category)} {{{one.category}}}" if self.named else "a {}"
                    yield _subject_case(word, (one,), None, index)

    def cases(
        self, split: PromptedSplit, count: int, can_ask: Callable[[PromptCase], bool] = any_case
    ) -> list[PromptCase]:
        """Subjects in turn: none is shown twice before all are; first those with a further picture to compare with."""
        used: Counter[tuple[Shown, bool]] = Counter()
        ranked = []
        for order, case in enumerate(filter(can_ask, self.find(split))):
            last = case.others == case.references
            ranked.append((last, used[case.references[0], last], order, case))
            used[case.references[0], last] += 1
        return [case for *_, case in sorted(ranked, key=lambda entry: entry[:3])[:count]]

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        distance = colour_distance(seen, seen.main, truth.colours[0])
        return {**score_main(seen, case.objects[0]), "distance": distance}


class SmallSubject(OneSubject):
    """A subject by what 16 pixels leave of its picture, otherwise as ``OneSubject``, with the same noise."""

    noise = "subject"

    def __init__(self) -> None:
        super().__init__(named=False)

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for case in super().find(split):
            small = tuple(Shrunk(one.entity.images[0], SMALL_SIDE) for one in case.objects)
            yield replace(case, references=small, others=small if case.others == case.references else case.others)


class RareSubject(OneSubject):
    """Subjects whose colour and category are met together most rarely in the split, which is drawn as what was trained on: the
    rarest fifth."""

    def __init__(self) -> None:
        super().__init__(named=False)

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        met = Counter((one.colour, one.category) for _, _, objects in split for one in objects)

        def often(case: PromptCase) -> int:
            return met[case.objects[0].colour, case.objects[0].category]

        cases = list(super().find(split))
        subjects = {case.references[0]: often(case) for case in cases}
        most = np.quantile(list(subjects.values()), RARE_SHARE) if subjects else 0
        return (case for case in cases if often(case) <= most)


class DescribedSubject(OneSubject):
    """The same subjects in words alone, all that a caption of the sample says of them: size, gloss, texture, colour, category.

    The picture is not shown; of ``OneSubject`` are the measures, the controls and the noise.
    """

    noise = "subject"

    def __init__(self) -> None:
        super().__init__(named=True)

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for case in super().find(split):
            (one,) = case.objects
            if one.colour is not None:
                captions = split.prompts[split.samples.samples[case.sample].id].captions
                words = describe(captions, one)
                yield replace(case, template=words, wording=words, in_words=True)


def describe(captions: tuple[str, ...], one: Named) -> str:
    """An object's colour and category, with the adjectives of the caption that has the most: "a small shiny red torus"."""
    said: list[str] = []
    for text, span in zip(captions, one.entity.spans, strict=True):
        found = None if span is None else _BEFORE.search(text[: span[0]])
        said = max(said, [] if found is None else found[1].split(), key=len)
    words = " ".join([*said, *([one.colour] if one.colour else []), one.category])
    return f"{article(words)} {words}"


class TwoSubjects(TwoObjects):
    """Two subjects by their pictures, and how they stand; the words leave their colours out.

    fused: only one of them is there, or one has the other's colour. What of it: one_missing, exchanged; beside it merged: the
    picture has a single object; blended: an object's colour is about the middle of both.
    distance: of each one's colour, over those that are there.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        *TwoObjects.metrics,
        "fused",
        "one_missing",
        "exchanged",
        "merged",
        "blended",
        "distance",
    )

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects):
                shown = all(one.entity.images and one.entity.mask is not None for one in caption.objects)
                if is_pair(caption.objects) and caption.relation is not None and shown:
                    first, second = (f"{article(one.category)} {{{one.category}}}" for one in caption.objects)
                    words = f"{first} {RELATION_WORDS[caption.relation][0]} {second}"
                    yield _subject_case(words, caption.objects, caption.relation, index)
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        found = [seen.find(wanted.category) for wanted in case.objects]
        exchanged = any(
            each is not None and each.colour_name == other.colour != own.colour
            for each, own, other in zip(found, case.objects, case.objects[::-1], strict=True)
        )
        alone = (found[0] is None) != (found[1] is None)
        distances = [
            colour_distance(seen, each, colour)
            for each, colour in zip(found, truth.colours, strict=True)
            if each is not None
        ]
        return {
            **super().score(seen, case, truth),
            "fused": float(alone or exchanged),
            "one_missing": float(alone),
            "exchanged": float(exchanged),
            "merged": float(len(seen.objects) == 1),
            "blended": float(any(_is_blend(each, *truth.colours) for each in seen.objects)),
            "distance": float(np.mean(distances)) if distances else None,
        }


def _is_blend(each: SeenObject, first: Array, second: Array) -> bool:
    """Whether an object's colour is within a quarter of the distance of two colours around their middle."""
    return bool(np.linalg.norm(each.colour - (first + second) / 2) < np.linalg.norm(first - second) / 4)


class SubjectBesideWords(TwoObjects):
    """A subject by its picture, and how it stands to an object in words, with that one's colour: "a {torus} left of a red cone".

    distance: of the subject's colour, where it is there.
    """

    metrics: ClassVar[tuple[str, ...]] = (*TwoObjects.metrics, "distance")
    of_sample = TwoObjects.metrics

    def find(self, split: PromptedSplit) -> Iterator[PromptCase]:
        for index, sample, objects in split:
            for caption in captions_of(sample, objects):
                if not is_pair(caption.objects) or caption.relation is None:
                    continue
                first, second = caption.objects
                shown = bool(first.entity.images) and first.entity.mask is not None
                if shown and second.colour not in (None, first.colour):
                    words = f"{article(first.category)} {{{first.category}}} {RELATION_WORDS[caption.relation][0]} "
                    words += f"{article(second.colour)} {second.colour} {second.category}"
                    case = _subject_case(words, (first,), caption.relation, index)
                    yield replace(case, objects=caption.objects, wording=parse_text(words))
                    break

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        subject = seen.find(case.objects[0].category)
        return {**super().score(seen, case, truth), "distance": colour_distance(seen, subject, truth.colours[0])}


class Contradiction(OneSubject):
    """For the sweep of the fusing scale: the words in braces name another colour than the subject's picture shows.

    text: the picture shows the category in the colour of the words; subject: in the colour of the picture.
    """

    metrics: ClassVar[tuple[str, ...]] = ("text", "subject", "distance")
    higher_is_better: ClassVar[frozenset[str]] = frozenset({"text", "subject"})
    words: ClassVar[str] = "{article} {{{said} {category}}}"

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
            words = self.words.format(article=article(said), said=said, category=one.category)
            asked = Named(one.category, said, one.entity)
            yield PromptCase(words, (one, asked), None, case.sample, case.references, case.others, parse_text(words))

    def score(self, seen: Seen, case: PromptCase, truth: Truth) -> Scores:
        (shown, asked), main = case.objects, seen.main
        right = main is not None and main.category == shown.category
        colour = None if main is None else main.colour_name
        return {
            "text": float(right and colour == asked.colour),
            "subject": float(right and colour == shown.colour),
            "distance": colour_distance(seen, main, truth.colours[0]),
        }


class Recoloured(Contradiction):
    """A subject by its picture in another colour, which the words before the braces ask for: "a green {torus}".

    What the picture stands for is the category alone, so words that are ignored beside a picture are seen here.
    """

    words: ClassVar[str] = "{article} {said} {{{category}}}"
    has_real = False  # no picture of the subject has the other colour


def _subject_case(words: str, objects: tuple[Named, ...], relation: str | None, index: int) -> PromptCase:
    references = tuple(one.entity.images[0] for one in objects)
    others = tuple((one.entity.images * 2)[1] for one in objects)
    wording = " and ".join(f"{article(one.category)} {one.category}" for one in objects)
    return PromptCase(words, objects, relation, index, references, others, wording)
