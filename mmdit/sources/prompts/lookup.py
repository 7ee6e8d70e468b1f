"""Words in captions: where a label stands, and which entities an answer of a language model lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from mmdit.prompt import has_brace
from mmdit.storage.json_text import parse_json

Span = tuple[int, int]
MAX_WORDS = 12  # of an entity: more is a sentence
_ARTICLE = re.compile(r"(?:an?|the|some|his|her|its|their)\s+", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):]|\(?[a-z][.)])\s+")
_NONE = ("none", "nothing", "no objects", "n/a")
# Scripts that put no blanks between words: a word may begin and end anywhere.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def find_phrase(phrase: str, text: str, taken: Iterable[Span] = ()) -> Span | None:
    """Find where a phrase stands in a text, as whole words: upper and lower case alike, "-", "_" and blanks too.

    Args:
        phrase: such as a detector's label. A plural is another word: "dogs" are several.
        text: the caption.
        taken: spans that the result must not overlap.

    Returns:
        (start, end) in characters of the first place; None where there is none, and for a phrase with braces, which prompts
        can't mark.
    """
    words = re.split(r"[\s_-]+", phrase.strip())
    if not any(words) or has_brace(phrase):
        return None
    pattern = re.compile(r"[\s_-]+".join(map(re.escape, filter(None, words))), re.IGNORECASE)
    for match in pattern.finditer(text):
        start, end = match.span()
        whole = not (_joined(text, start) or _joined(text, end))
        if whole and not any(start < other_end and end > other for other, other_end in taken):
            return start, end
    return None


def find_phrases(phrases: Sequence[str], text: str) -> list[Span | None]:
    """Find each of several phrases; a longer one comes first, so that "bear" is not found inside "teddy bear"."""
    spans: list[Span | None] = [None] * len(phrases)
    for index in sorted(range(len(phrases)), key=lambda index: -len(phrases[index])):
        spans[index] = find_phrase(phrases[index], text, [span for span in spans if span is not None])
    return spans


def parse_entities(answer: str, most: int) -> list[str]:
    """Read the entities that a language model lists: a JSON list, a line each, or one line with commas.

    Bullets, quotes, articles and full stops are taken away; what repeats another or is no phrase is left out.

    Args:
        answer: of the model.
        most: entities that are kept.
    """
    found: list[str] = []
    for part in _parts(answer):
        name = _BULLET.sub("", part).strip(" \t\"'`“”‘’*.,;:{}")
        name = " ".join(_ARTICLE.sub("", name, count=1).split())
        is_phrase = any(map(str.isalpha, name)) and len(name.split()) <= MAX_WORDS and name.lower() not in _NONE
        if is_phrase and name.casefold() not in map(str.casefold, found):
            found.append(name)
    return found[:most]


def one_text(text: str) -> str:
    """A language model's answer as one line, without quotes around it and without what it thought before."""
    text = " ".join(text.rpartition("</think>")[2].split())
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _parts(answer: str) -> list[str]:
    answer = answer.rpartition("</think>")[2]
    start, end = answer.find("["), answer.rfind("]")
    if 0 <= start < end:
        try:
            values = parse_json(answer[start : end + 1].encode("utf-8", "replace"))
        except ValueError:
            values = []
        if texts := [value for value in values if isinstance(value, str)]:
            return texts
    lines = [line for line in answer.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    return re.split(r"[,;、，]", lines[0]) if len(lines) == 1 else lines


def _joined(text: str, position: int) -> bool:
    """Whether the characters on both sides of a position are of one word."""
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    return all(_in_word(char) for char in (before, after)) and not any(_unspaced(char) for char in (before, after))


def _in_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M"


def _unspaced(char: str) -> bool:
    return not char.isascii() and unicodedata.name(char, "").startswith(_UNSPACED)
