"""The syntax of prompts of text and subjects; nothing here needs a network.

``"a {torus} in front of a {red cone}"`` marks the words that a subject's image stands for; ``{}`` is an image without a
word. ``{{`` and ``}}`` are braces. What an encoder reads is the text without the braces, with the positions of
the marked words as character spans (UMM-Diffusion, arXiv 2303.09319: the caption y and the positions p).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmdit.errors import UserError, nearest_names

# What stands in the text for an image without a word.
IMAGE_WORD = "object"
_MIRRORED = {"left": "right", "right": "left"}
# "right behind" says directly, not on which side.
_DIRECTLY = r"(?!\s+(?:behind|in\s+front|next|beside|above|below|under|over|before|after|here|there|away|at\s+the)\b)"
_SIDES = re.compile(rf"\b(left(?=(?:most|wards?)?\b)|right(?=(?:most|wards?)?\b){_DIRECTLY})", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a prompt's text, which stand for image number ``subject``."""

    start: int
    end: int
    subject: int

    def shift(self, offset: int) -> Span:
        """Return the span moved by ``offset`` characters."""
        return replace(self, start=self.start + offset, end=self.end + offset)


@dataclass(frozen=True)
class Prompt:
    """A text and the images that some of its words stand for.

    Args:
        text: without braces.
        spans: where the subjects' words are, in the order of the text; they do not overlap, and no brace is in them.
        images: the subjects; ``spans[i].subject`` counts them. What an image is (PIL, or with a mask) is the encoder's affair.
    """

    text: str
    spans: tuple[Span, ...] = ()
    images: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        ends = [0, *(span.end for span in self.spans)]
        for span, earlier in zip(self.spans, ends, strict=False):
            assert earlier <= span.start < span.end <= len(self.text), f"span {span} does not fit {self.text!r}"
            assert span.subject >= 0, span
        assert not self.images or all(span.subject < len(self.images) for span in self.spans)

    @property
    def words(self) -> tuple[str, ...]:
        """The text of each span."""
        return tuple(self.text[span.start : span.end] for span in self.spans)

    @property
    def template(self) -> str:
        """The text with its braces, which ``parse`` reads back."""
        parts, end = [], 0
        for span in self.spans:
            parts += [_escape(self.text[end : span.start]), "{", self.text[span.start : span.end], "}"]
            end = span.end
        return "".join([*parts, _escape(self.text[end:])])

    @property
    def text_only(self) -> Prompt:
        """The same words without images."""
        return Prompt(self.text)

    def mirrored(self) -> Prompt:
        """The prompt of the image mirrored left to right: "left" and "right" change places, spans move along."""
        text, spans, end = "", [], 0
        for span in self.spans:
            text += mirror_text(self.text[end : span.start])
            word = mirror_text(self.text[span.start : span.end])
            spans.append(Span(len(text), len(text) + len(word), span.subject))
            text, end = text + word, span.end
        return Prompt(text + mirror_text(self.text[end:]), tuple(spans), self.images)


def mirror_text(text: str) -> str:
    """Swap the words "left" and "right" ("leftmost", "leftwards" too), in their own case.

    "in the left half" of an image is "in the right half" of its mirror image.
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = _MIRRORED[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDES.sub(swap, text)


def parse(template: str, subjects: Mapping[str, Any] | Sequence[Any] | None = None) -> Prompt:
    """Read a prompt with braces.

    Args:
        template: the text; see the head of this file.
        subjects: word in braces -> image (both braces of a word that occurs twice then mean the same subject), or a list of
            images in the order of the braces.

    Raises:
        UserError: an unclosed or stray brace, braces in braces, an empty text, a tag without an image, an image without a
            tag, or another number of images than of braces.
    """
    if not isinstance(template, str):
        raise UserError(
            f"prompt is a {type(template).__name__}: give a text, such as 'a red torus left of a blue cone'"
        )
    text, marked = _read(template)
    if not text.strip():
        raise UserError("prompt is empty: give a text, such as 'a red torus left of a blue cone'")
    tags = [text[start:end] if written else "" for start, end, written in marked]
    images, numbers = _assign(tags, subjects)
    spans = (Span(start, end, number) for (start, end, _), number in zip(marked, numbers, strict=True))
    return Prompt(text, tuple(spans), images)


def has_brace(text: str) -> bool:
    """Whether a text holds a brace. Marked words can't: between braces of the syntax there is no way to write one."""
    return "{" in text or "}" in text


def tags(template: str) -> list[str]:
    """The words in braces, in order; "" = an image without a word. Raises UserError for a text that ``parse`` can't read."""
    return [text[start:end] if written else "" for text, marked in [_read(template)] for start, end, written in marked]


def parse_text(template: str) -> str:
    """The text of a prompt with braces, as ``parse`` reads it, whatever its images."""
    return _read(template)[0]


def _read(template: str) -> tuple[str, list[tuple[int, int, bool]]]:
    """The text without braces, and of each pair (start, end, whether it held a word)."""
    text, marked, opened = "", [], None
    position = 0
    try:
        template.encode("utf-8")
    except UnicodeEncodeError as error:  # a byte of the terminal's that is no UTF-8
        raise UserError(f"prompt {template!r}: character {error.start + 1} is no character: give UTF-8 text") from None
    while position < len(template):
        pair, character = template[position : position + 2], template[position]
        position += 1
        if pair in ("{{", "}}") and opened is None:
            text, position = text + character, position + 1
        elif character == "{":
            if opened is not None:
                raise UserError(
                    f"prompt {template!r}: braces in braces at character {position}: close the first one before"
                )
            beside = template[position - 2 : position] == "}{"
            if beside and (template[position - 3] == "{" or template[position : position + 1] == "}"):
                text += " "  # "{}{}" are two words
            opened = (len(text), position)
        elif character == "}":
            if opened is None:
                raise UserError(
                    f"prompt {template!r}: '}}' at character {position} closes nothing: write '}}}}' for a brace"
                )
            word = text[opened[0] :]
            if word != word.strip():  # "{ torus }": the blanks are the text's, not the subject's
                raise UserError(f"prompt {template!r}: blanks inside '{{{word}}}': write '{{{word.strip()}}}'")
            text += "" if word else IMAGE_WORD
            marked.append((opened[0], len(text), bool(word)))
            opened = None
        else:
            text += character
    if opened is not None:
        raise UserError(
            f"prompt {template!r}: '{{' at character {opened[1]} is not closed: add '}}', or write '{{{{' for a brace"
        )
    return text, marked


def _assign(tags: list[str], subjects: Mapping[str, Any] | Sequence[Any] | None) -> tuple[tuple[Any, ...], list[int]]:
    """The images, and of each tag the number of its image."""
    listed = ", ".join(f"{{{tag}}}" for tag in tags) or "none"
    if subjects is None:
        subjects = ()
    if isinstance(subjects, Mapping):
        for word in subjects:
            if word not in tags:
                hint = f"; nearest is {nearest_names(str(word), tags, 1)[0]!r}" if any(tags) else ""
                raise UserError(
                    f"subject {word!r} is not in the prompt: write {{{word}}} there (it has {listed}{hint})"
                )
        for tag in tags:
            if tag not in subjects:
                raise UserError(
                    f"{{{tag}}} in the prompt has no image: give subjects={{{tag!r}: image}} (--subject {tag}=FILE)"
                )
        order = list(dict.fromkeys(tags))
        return tuple(subjects[tag] for tag in order), [order.index(tag) for tag in tags]
    if isinstance(subjects, str | bytes) or not isinstance(subjects, Sequence):
        raise UserError(f"subjects is a {type(subjects).__name__}: give word -> image, or a list of images")
    if len(subjects) != len(tags):
        raise UserError(
            f"the prompt marks {len(tags)} subjects ({listed}) and {len(subjects)} images are given: give one for each"
        )
    return tuple(subjects), list(range(len(tags)))


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
