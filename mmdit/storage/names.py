"""File names from any text, and text from any file name."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence

# A file system takes 255 bytes. What is left is for what callers add: a seed, a suffix, ".tmp".
MAX_BYTES = 200
NAMELESS = "sample"


def safe_name(text: str) -> str:
    """Turn any text into a file name: letters, digits, '.', '-' and '_'; never empty, never hidden, of 200 bytes at most.

    Letters include the marks that many scripts write vowels with, and accents are composed, so a name is the same however
    its accents were typed. A longer name is cut and ends in a hash of the whole. Two texts may still share a name:
    ``number_repeats`` tells them apart.
    """
    composed = unicodedata.normalize("NFC", text)
    kept = [char if unicodedata.category(char)[0] in "LMN" or char in "_.-" else " " for char in composed]
    name = "_".join("".join(kept).split()).strip("._") or NAMELESS
    return shorten(name, text)


def shorten(name: str, text: str, limit: int = MAX_BYTES) -> str:
    """Cut a name to ``limit`` bytes, the last nine of them "_" and a hash of ``text``; a name that fits is left alone."""
    content = name.encode("utf-8", "surrogateescape")
    if len(content) <= limit:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{content[: limit - 9].decode('utf-8', 'ignore')}_{digest}"


def nested_name(text: str, suffixes: Sequence[str], limit: int = MAX_BYTES) -> str:
    """Turn an id into a path below a folder, without a suffix: the id itself where it is such a path, else a safe name.

    A name made safe ends in a hash of the whole id, so that two ids have two names. None leaves the folder, is hidden, or
    needs a folder that has the name of another id's file.

    Args:
        text: an id; "/" parts folders.
        suffixes: of the files that are named so, which no folder's name may end with.
        limit: bytes of each part.
    """
    *folders, _ = parts = text.split("/")
    is_path = all(part and not part.startswith(".") and len(part.encode(errors="replace")) <= limit for part in parts)
    if is_path and text.isprintable() and not any(folder.endswith(tuple(suffixes)) for folder in folders):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{safe_name(text)[: MAX_BYTES // 8]}_{digest}"


def number_repeats(names: Sequence[str], ignore_case: bool = True) -> list[str]:
    """Add "_2", "_3", … to names that came before, upper and lower case alike; a name so made never meets another."""
    key = _folded if ignore_case else str
    taken = {key(name) for name in names}
    used: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 1
        while key(candidate) in used or (number > 1 and key(candidate) in taken):
            number += 1
            candidate = f"{name}_{number}"
        used.add(key(candidate))
        result.append(candidate)
    return result


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def text_of(path: str | bytes) -> str:
    """Return a file's name or path as text, the same under any locale; a byte that is not UTF-8 becomes "%E9"."""
    content = os.fsencode(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("utf-8", "surrogateescape")
        return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text)


def path_of(text: str) -> str:
    """Return the path that a text on disk means: its UTF-8 bytes, whatever the locale.

    Raises:
        UnicodeEncodeError: half a surrogate pair, which no file name holds.
    """
    return text if text.isascii() else os.fsdecode(text.encode("utf-8", "surrogateescape"))
