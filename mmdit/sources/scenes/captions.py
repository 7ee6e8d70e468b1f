"""What a scene's caption says, by construction: categories, colours, sizes, relations, floor, wall, texture and gloss.

A caption is a text with the character span of each object's words, None for an object that it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdit.sources.scenes.colours import colour_name, encode_srgb
from mmdit.sources.scenes.layout import Layout, Material, PlacedObject
from mmdit.sources.scenes.subjects import OPPOSITE, SIZE_RATIO

Span = tuple[int, int]
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "front": ("in front of", "before"),
    "behind": ("behind", "at the back of"),
}
TEXTURE_WORDS = {"checker": "checkered", "stripes": "striped", "noise": "speckled"}
GLOSS_WORD, SHINY = "shiny", 0.3
LEADS = ("", "", "", "a picture of ", "a photo of ", "a rendering of ")


@dataclass(frozen=True)
class Caption:
    """A text and, object by object of the layout, where its words are."""

    text: str
    spans: tuple[Span | None, ...]


def phrase(placed: PlacedObject) -> str:
    """The object's colour and category: "red torus"."""
    return f"{_colour(placed.material)} {placed.category}"


def captions(layout: Layout, rng: np.random.Generator, count: int = 6) -> list[Caption]:
    """Draw ``count`` captions of a scene, different ones as far as its words allow."""
    found: dict[str, Caption] = {}
    for _ in range(4 * count):
        caption = _pair(layout, rng) if layout.relation else _single(layout, rng)
        found.setdefault(caption.text, caption)
        if len(found) == count:
            break
    drawn = list(found.values())
    return [drawn[i % len(drawn)] for i in range(count)]


class _Writer:
    """Puts words together and remembers where the objects' are."""

    def __init__(self, num_objects: int) -> None:
        self.text = ""
        self.spans: list[Span | None] = [None] * num_objects

    def add(self, text: str) -> _Writer:
        self.text += text
        return self

    def noun(self, number: int, placed: PlacedObject, colour: bool, size: str = "") -> _Writer:
        """The object with an article; the span is that of the category, with the colour before it where it is said."""
        words = [_colour(placed.material)] if colour else []
        marked = " ".join([*words, placed.category])
        before = " ".join(word for word in (size, *_surface(placed.material)) if word)
        head = f"{before} " if before else ""
        self.text += f"{_article(head + marked)} {head}"
        self.spans[number] = (len(self.text), len(self.text) + len(marked))
        return self.add(marked)

    def caption(self) -> Caption:
        return Caption(self.text, tuple(self.spans))


def _single(layout: Layout, rng: np.random.Generator) -> Caption:
    writer = _Writer(len(layout.objects)).add(_one_of(rng, LEADS))
    writer.noun(0, layout.objects[0], colour=rng.random() < 0.8)
    if len(layout.objects) > 1 and rng.random() < 0.35:
        other = int(rng.integers(1, len(layout.objects)))
        writer.add(" with ").noun(other, layout.objects[other], colour=rng.random() < 0.8, size="small")
        writer.add(_one_of(rng, (" beside it", " near it", "")))
    return _background(writer, layout, rng).caption()


def _pair(layout: Layout, rng: np.random.Generator) -> Caption:
    assert layout.relation is not None
    first, second, relation = 0, 1, layout.relation
    if rng.random() < 0.3:  # told from the other one's side
        first, second, relation = 1, 0, OPPOSITE[relation]
    sizes = _sizes(layout) if rng.random() < 0.6 else ("", "")
    writer = _Writer(len(layout.objects)).add(_one_of(rng, LEADS))
    writer.noun(first, layout.objects[first], rng.random() < 0.8, sizes[first])
    writer.add(f" {_one_of(rng, RELATION_WORDS[relation])} ")
    writer.noun(second, layout.objects[second], rng.random() < 0.8, sizes[second])
    return _background(writer, layout, rng).caption()


def _background(writer: _Writer, layout: Layout, rng: np.random.Generator) -> _Writer:
    floor, wall = _ground(layout.floor), _ground(layout.wall)
    draw = rng.random()
    if draw < 0.25:
        writer.add(f" on {_article(floor)} {floor} floor")
    if draw < 0.12 or 0.25 <= draw < 0.35:
        writer.add(f" against {_article(wall)} {wall} wall")
    return writer


def _sizes(layout: Layout) -> tuple[str, str]:
    """ "small" and "large" where the two differ enough, else nothing."""
    one, other = (max(placed.scale) for placed in layout.objects[:2])
    if one > SIZE_RATIO * other:
        return "large", "small"
    return ("small", "large") if other > SIZE_RATIO * one else ("", "")


def _surface(material: Material) -> tuple[str, ...]:
    gloss = GLOSS_WORD if material.gloss >= SHINY else ""
    return gloss, TEXTURE_WORDS.get(material.texture, "")


def _ground(material: Material) -> str:
    return " ".join(word for word in (TEXTURE_WORDS.get(material.texture, ""), _colour(material)) if word)


def _colour(material: Material) -> str:
    return colour_name(encode_srgb(material.albedo))


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" or words.startswith("hour") else "a"


def _one_of(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
