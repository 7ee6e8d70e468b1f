"""What a scene's caption says, by construction: categories, colours, sizes, relations, floor, wall, texture and gloss.

A caption is a text with the character span of each object's words, None for an object that it leaves out, and those of the
floor, the wall and "the scene" whose style it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mmdit.colours import colour_name, encode_srgb
from mmdit.names import BACKGROUND_CLASSES, RELATION_WORDS, STYLE_WORD
from mmdit.sources.scenes.layout import Layout, PlacedObject
from mmdit.sources.scenes.material import Material
from mmdit.sources.scenes.subjects import OPPOSITE, SIZE_RATIO

Span = tuple[int, int]
# Both named, nothing said of how they stand; the last two only where they stand side by side.
JOINED_WORDS = ("and", "and", "with", "next to", "beside")
LARGE_WORDS = ("large", "large", "big")
SIDES = ("left", "right")
TEXTURE_WORDS = {"checker": "checkered", "stripes": "striped", "noise": "speckled"}
GLOSS_WORD, SHINY = "shiny", 0.3
STYLE_SHARE = 0.5  # of the captions of a pair; in 0.08 of them, a hundredth of all, styles were not learned
# What words may stand for besides objects: floor and wall, and both together in another picture.
FLOOR, WALL, STYLE = GROUND = (*BACKGROUND_CLASSES, STYLE_WORD)
LEADS = ("", "", "", "a picture of ", "a photo of ", "a rendering of ")


@dataclass(frozen=True)
class Caption:
    """A text and, object by object of the layout, where its words are; ``ground``: name in ``GROUND`` -> where its words are."""

    text: str
    spans: tuple[Span | None, ...]
    ground: Mapping[str, Span] = field(default_factory=dict)


def phrase(placed: PlacedObject) -> str:
    """The object's colour and category: "red torus"."""
    return _joined(placed.colour, placed.category)


def ground_phrase(layout: Layout, name: str) -> str:
    """What ``name`` of ``GROUND`` is called: "grey floor", "white wall", "scene"."""
    if name == STYLE:
        return STYLE
    return f"{_ground(layout.floor if name == FLOOR else layout.wall)} {name}"


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
        self.ground: dict[str, Span] = {}

    def add(self, text: str) -> _Writer:
        self.text += text
        return self

    def noun(self, rng: np.random.Generator, number: int, placed: PlacedObject, size: str = "") -> _Writer:
        """The object with an article, mostly with its colour.

        The span is that of the category, with the colour before it where it is said.
        """
        marked = _joined(placed.colour if rng.random() < 0.8 else "", placed.category)
        before = _joined(size, *_surface(placed.material))
        head = f"{before} " if before else ""
        article = "the" if rng.random() < 0.08 else _article(head + marked)
        self.text += f"{article} {head}"
        self.spans[number] = (len(self.text), len(self.text) + len(marked))
        return self.add(marked)

    def place(self, name: str, words: str) -> _Writer:
        """Words of the floor, the wall or the style."""
        self.ground[name] = (len(self.text), len(self.text) + len(words))
        return self.add(words)

    def caption(self) -> Caption:
        return Caption(self.text, tuple(self.spans), self.ground)


def _single(layout: Layout, rng: np.random.Generator) -> Caption:
    writer = _Writer(len(layout.objects)).add(_one_of(rng, LEADS))
    writer.noun(rng, 0, layout.objects[0])
    if len(layout.objects) > 1 and rng.random() < 0.35:
        other = int(rng.integers(1, len(layout.objects)))
        writer.add(" with ").noun(rng, other, layout.objects[other], size="small" if layout.says_sizes else "")
        writer.add(_one_of(rng, (" beside it", " near it", "")))
    return _background(writer, layout, rng).caption()


def _pair(layout: Layout, rng: np.random.Generator) -> Caption:
    assert layout.relation is not None
    first, second, relation = 0, 1, layout.relation
    if rng.random() < 0.3:  # told from the other one's side
        first, second, relation = 1, 0, OPPOSITE[relation]
    sizes = _sizes(layout, rng) if rng.random() < 0.6 and layout.says_sizes else ("", "")
    between = _one_of(rng, RELATION_WORDS[relation])
    if rng.random() < 0.15:
        between = _one_of(rng, JOINED_WORDS if relation in SIDES else JOINED_WORDS[:-2])
    writer = _Writer(len(layout.objects)).add(_one_of(rng, LEADS))
    writer.noun(rng, first, layout.objects[first], sizes[first])
    writer.add(f" {between} ")
    writer.noun(rng, second, layout.objects[second], sizes[second])
    return _background(writer, layout, rng).caption()


def _background(writer: _Writer, layout: Layout, rng: np.random.Generator) -> _Writer:
    draw = rng.random()
    if layout.relation and layout.subjects and draw > 1 - STYLE_SHARE:  # another picture has the same floor and wall
        return writer.add(" in the style of the ").place(STYLE, ground_phrase(layout, STYLE))
    for name, lead, said in ((FLOOR, " on ", draw < 0.25), (WALL, " against ", draw < 0.12 or 0.25 <= draw < 0.35)):
        if said:
            words = ground_phrase(layout, name)
            writer.add(f"{lead}{_article(words)} ").place(name, words)
    return writer


def _sizes(layout: Layout, rng: np.random.Generator) -> tuple[str, str]:
    """ "small" and "large" (or "big") where the two differ enough, else nothing."""
    one, other = (placed.size for placed in layout.objects[:2])
    large = _one_of(rng, LARGE_WORDS)
    if one > SIZE_RATIO * other:
        return large, "small"
    return ("small", large) if other > SIZE_RATIO * one else ("", "")


def _surface(material: Material) -> tuple[str, ...]:
    gloss = GLOSS_WORD if material.gloss >= SHINY else ""
    return gloss, TEXTURE_WORDS.get(material.texture, "")


def _ground(material: Material) -> str:
    return _joined(TEXTURE_WORDS.get(material.texture, ""), _colour(material))


def _colour(material: Material) -> str:
    return colour_name(encode_srgb(material.albedo))


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)


def _article(words: str) -> str:
    lower = words.lower()
    vowel = lower.startswith(("a", "e", "i", "o", "u", "hour")) and not lower.startswith(
        ("eu", "one ", "uni", "uri", "use")
    )
    return "an" if vowel else "a"


def _one_of(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
