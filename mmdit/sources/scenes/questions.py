"""Questions about scenes and their answers, by construction: from entities, and what captions say of them."""

from __future__ import annotations

import re

from mmdit.colours import COLOUR_NAMES
from mmdit.data.prompts import CaptionedSample, Entity
from mmdit.names import RELATION_WORDS
from mmdit.sources.scenes.captions import GROUND
from mmdit.sources.scenes.subjects import OPPOSITE

COLOURS = frozenset({*COLOUR_NAMES, "black", "grey", "white"})
_BETWEEN = {
    relation: re.compile(rf"\s(?:{'|'.join(words)})\s(?:a|an|the)\s(?:\w+\s)*$")
    for relation, words in RELATION_WORDS.items()
}


def questions(sample: CaptionedSample) -> list[tuple[str, str]]:
    """What can be asked about a scene, each with its one answer.

    ("what colour is the torus?", "red"); ("what is left of the cone?", "red torus"). Nothing is asked about a category that is
    there twice.
    """
    nouns = [entity.noun for entity in sample.entities]
    single = [entity for entity in sample.entities if nouns.count(entity.noun) == 1]
    found = []
    for entity in single:
        colours = [word for word in entity.phrase.split() if word in COLOURS]
        if len(colours) == 1:
            found.append((f"what colour is the {entity.noun}?", colours[0]))
    objects = [entity for entity in single if entity.noun not in GROUND]
    for one in objects:
        for other in objects:
            if one is not other and (relation := _relation(sample, one, other)) is not None:
                found.append((f"what is {RELATION_WORDS[relation][0]} the {other.noun}?", one.phrase))
                found.append((f"what is {RELATION_WORDS[OPPOSITE[relation]][0]} the {one.noun}?", other.phrase))
    return list(dict.fromkeys(found))


def kind_of(question: str) -> str:
    """What a question is about: "object_colour", "ground_colour" or "relation"."""
    if not question.startswith("what colour"):
        return "relation"
    return "ground_colour" if question.rstrip("?").split()[-1] in GROUND else "object_colour"


def _relation(sample: CaptionedSample, one: Entity, other: Entity) -> str | None:
    """Where a caption says that ``one`` is, as seen from ``other``."""
    for number, text in enumerate(sample.captions):
        first, second = one.spans[number], other.spans[number]
        if first is None or second is None or first[1] > second[0]:
            continue
        between = text[first[1] : second[0]]
        for relation, pattern in _BETWEEN.items():
            if pattern.match(between):
                return relation
    return None
