"""Prompts as they are typed: ``--prompt TEXT`` with braces, and ``--subject WORD=FILE`` or ``--subject FILE`` for the braces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmdit.cli.common.inputs import source_name
from mmdit.errors import UserError, nearest_names
from mmdit.modalities.rgb import read_picture
from mmdit.modalities.stored import regular_size
from mmdit.prompt import parse, tags
from mmdit.storage.digests import digest_file
from mmdit.storage.names import number_repeats, safe_name, shorten

_NAME_BYTES = 80


@dataclass(frozen=True)
class SubjectFile:
    """An image of a subject: the word in braces it is for ("" = braces in their order), and the option as it was typed."""

    word: str
    path: Path
    option: str


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt and the image of each of its braces, in their order."""

    template: str
    files: tuple[SubjectFile, ...] = ()

    @property
    def name(self) -> str:
        """What its samples are called: its words, and the files that its images come from."""
        words = shorten(safe_name(parse(self.template, self.files).text), self.template, _NAME_BYTES)
        if not self.files:
            return words
        sources = "_".join(source_name(path) for path in dict.fromkeys(file.path for file in self.files))
        return shorten(f"{words}_with_{sources}", self.template, 2 * _NAME_BYTES)

    def subjects(self, images: Mapping[Path, Image.Image]) -> dict[str, Image.Image] | list[Image.Image] | None:
        """What the pipeline is given; both braces of one word are one subject."""
        if not self.files:
            return None
        if all(file.word for file in self.files):
            return {file.word: images[file.path] for file in self.files}
        return [images[file.path] for file in self.files]

    def request(self) -> dict[str, Any]:
        """All that decides the prompt, as JSON values; images by path and content."""
        subjects = [
            {"word": tag, "path": str(file.path), "sha256": digest_file(file.path)}
            for tag, file in zip(tags(self.template), self.files, strict=True)
        ]
        return {"prompt": self.template, "subjects": subjects}


def typed_prompts(prompts: Sequence[str] | None, subjects: Sequence[str] | None) -> list[TypedPrompt]:
    """Give each prompt the images of its braces.

    A word's image is for its braces in every prompt. Images without a word fill the other braces of each prompt, in order.

    Raises:
        UserError: a prompt that can't be read, a brace without an image, an image without a brace, a word with two images, or
            a file that isn't there.
    """
    files = _subject_files(subjects or ())
    if files and not prompts:
        raise UserError(f"{files[0].option}: no prompt is given: give one with braces, such as --prompt 'a {{torus}}'")
    in_order = [file for file in files if not file.word]
    of_word = {file.word: file for file in files if file.word}
    typed, used = [], 0
    for template in prompts or ():
        words = tags(template)
        others = [word for word in words if word not in of_word]
        used = max(used, len(others))
        if len(others) > len(in_order):
            word = others[len(in_order)]
            raise UserError(
                f"--prompt {template!r}: {{{word}}} has no image: give --subject {word}{'=' if word else ''}FILE"
            )
        rest = iter(in_order)
        typed.append(TypedPrompt(template, tuple(of_word[word] if word in of_word else next(rest) for word in words)))
    marked = [word for template in prompts or () for word in tags(template)]
    for word, file in of_word.items():
        if word not in marked:
            named = [each for each in marked if each]
            nearest = f"; nearest is {nearest_names(word, named, 1)[0]!r}" if named else ""
            raise UserError(f"{file.option}: no prompt marks {word!r}: write {{{word}}} in it{nearest}")
    if len(in_order) > used:
        raise UserError(f"{in_order[used].option}: no prompt has a brace left for it: write {{}} or {{word}} in it")
    for prompt in typed:
        parse(prompt.template, prompt.files)
    return typed


def read_images(prompts: Sequence[TypedPrompt]) -> dict[Path, Image.Image]:
    """Read each subject's image once, as ``mmdit understand`` reads images. Raises UserError for one that can't be read."""
    paths = dict.fromkeys(file.path for prompt in prompts for file in prompt.files)
    return {path: Image.fromarray(read_picture(path)) for path in paths}


def prompt_names(prompts: Sequence[TypedPrompt]) -> list[str]:
    """A name for each prompt; different prompts with the same words have a number after them."""
    unique = list(dict.fromkeys(prompts))
    names = dict(zip(unique, number_repeats([prompt.name for prompt in unique]), strict=True))
    return [names[prompt] for prompt in prompts]


def _subject_files(given: Sequence[str]) -> list[SubjectFile]:
    files: list[SubjectFile] = []
    for entry in given:
        word, mark, text = entry.partition("=")
        if not mark or "/" in word:  # a file alone; "=FILE" where its name has such a mark
            word, text = "", entry
        option = f"--subject {entry}"
        if not text:
            raise UserError(f"--subject {entry!r}: give WORD=FILE, such as --subject torus=mine.png, or FILE")
        twice = next((file for file in files if word and file.word == word), None)
        if twice is not None:
            raise UserError(
                f"{option}: {word!r} has an image already, {twice.option}: leave one out, or give images without words for "
                "braces in their order"
            )
        path = Path(text).expanduser()
        try:
            regular_size(path)
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
        files.append(SubjectFile(word, path, option))
    return files
