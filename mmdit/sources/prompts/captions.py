"""Captions that are there already: in prompts.jsonl, or in a text file beside each image."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mmdit.data.lines import Rules
from mmdit.data.prompts import MAX_TEXT, PROMPTS, parse_prompts
from mmdit.errors import UserError
from mmdit.sources.labelling.images import SourceImage
from mmdit.storage.digests import digest_json
from mmdit.storage.json_text import BOM, read_bounded
from mmdit.storage.listing import is_image
from mmdit.storage.names import path_of

# The user's own prompts.jsonl keeps this name beside the one that is made.
GIVEN = "prompts.given.jsonl"
NONE = "none"
MAX_BYTES = 2**18


@dataclass(frozen=True)
class Captions:
    """What is known of one image: its captions, none where they are to be written; or the ``problem`` with its file."""

    texts: tuple[str, ...] = ()
    problem: str = ""

    @property
    def note(self) -> str:
        """A digest of the captions, "" without any."""
        return digest_json(list(self.texts)) if self.texts or self.problem else ""


class GivenCaptions:
    """The captions of a split that are there.

    Args:
        rules: the dataset and the split.
        ids: of its samples.
        where: folder of text files named by the samples' ids; None = ``prompts.given.jsonl``, then a text file beside each
            image; "none" = none are taken.

    Raises:
        UserError: a file of captions with something wrong in it, or a folder that isn't there.
    """

    def __init__(self, rules: Rules, ids: Collection[str], where: str | None = None) -> None:
        self.folder = None if where in (None, NONE) else Path(where)
        self.beside, self.listed = where is None, dict[str, tuple[str, ...]]()
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"--captions {where!r}: no such folder; give one of text files, or 'none'")
        if self.beside and (rules.root / rules.split / GIVEN).is_file():
            for sample, problems in parse_prompts(rules, ids, GIVEN):
                if problems:
                    raise problems[0].error(rules.root)
                assert sample is not None
                self.listed[sample.id] = sample.captions

    def of(self, image: SourceImage) -> Captions:
        """Return the captions of an image; what can't be read is a ``problem``."""
        if image.id in self.listed:
            return Captions(self.listed[image.id])
        for path in self._files(image):
            if os.path.lexists(path):
                try:
                    return Captions(read_captions(path))
                except UserError as error:
                    return Captions(problem=str(error))
        return Captions()

    def _files(self, image: SourceImage) -> list[Path]:
        if self.folder is not None:
            names = [image.id, *([os.path.splitext(image.id)[0]] if is_image(image.id) else [])]
            inside = [name for name in names if ".." not in name.split("/") and not name.startswith("/")]
            return [self.folder / path_of(f"{name}.txt") for name in inside if "\0" not in name]
        return [Path(image.path).with_suffix(".txt")] if self.beside else []


def read_captions(path: Path) -> tuple[str, ...]:
    """Read a text file: each line that is not blank is a caption of its own.

    Raises:
        UserError: a file that can't be read, is not UTF-8, is empty, or has a line of more than 10,000 characters.
    """
    content = read_bounded(path, MAX_BYTES)
    try:
        text = content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}: save it as UTF-8") from None
    lines = tuple(line for raw in text.replace("\r", "\n").split("\n") if (line := " ".join(raw.split())))
    if not lines:
        raise UserError(f"{path}: is empty: write a caption, or delete it")
    if any(len(line) > MAX_TEXT for line in lines):
        raise UserError(f"{path}: a line has more than {MAX_TEXT} characters: each line is a caption")
    return lines


def keep_given(folder: Path, made: bool) -> None:
    """Rename the user's prompts.jsonl, so that what it says survives the one that is made.

    Args:
        folder: of the split.
        made: whether prompts.jsonl there is one that this command made.

    Raises:
        UserError: it can't be renamed, or both are there.
    """
    path, given = folder / PROMPTS, folder / GIVEN
    if made or not path.exists():
        return
    if given.exists():
        raise UserError(f"{path}: there is a {GIVEN} beside it: join the two, and leave one of them there")
    try:
        path.rename(given)
    except OSError as error:
        raise UserError(f"{path}: can't be renamed to {GIVEN}: {error.strerror or error}") from None
