"""Public benchmarks of prompts as they lie on disk: which prompts there are, and by which pictures. Nothing is fetched.

dreambench (DreamBooth's data, arXiv 2208.12242): ``prompts_and_classes.txt`` and a folder of pictures for each of the 30 subjects
(also under ``dataset/``, as it is published); 25 prompts for objects or for living subjects, four pictures of each.
multibench (several subjects in one prompt, as UNIMO-G reports it, arXiv 2401.13388; its own files are not public): the same
folders and ``prompts.jsonl``, lines {"prompt": "a {cat} beside a {dog}", "subjects": {"cat": folder, "dog": folder}}.
coco30k: ``annotations/captions_val2014.json`` and ``val2014/``; 30,000 captions drawn with a seed, one picture each.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmdit.errors import UserError, unknown_name
from mmdit.prompt import Prompt, Span, parse
from mmdit.storage.json_object import read_object
from mmdit.storage.json_text import parse_json, quoted, read_bounded
from mmdit.storage.listing import list_images

MAX_CAPTIONS_BYTES = 2**28


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt.

    Args:
        id: a name for its files.
        template: with a brace for each subject.
        text: without braces, which CLIP-T compares with.
        subjects: all pictures of each subject, in the order of the braces; the first one is shown to the model.
    """

    id: str
    template: str
    text: str
    subjects: tuple[tuple[Path, ...], ...] = ()


class PromptBenchmark(ABC):
    """One benchmark. ``images_per_prompt``: of the published protocol; ``has_subjects``: whether there are pictures to show."""

    images_per_prompt: ClassVar[int]
    has_subjects: ClassVar[bool] = True

    @abstractmethod
    def prompts(self, data: Path, seed: int) -> list[BenchmarkPrompt]:
        """Read all prompts. Raises UserError for a file or folder that is missing or wrong."""

    def real_images(self, data: Path) -> list[Path]:
        """The pictures that the Fréchet distance is measured against; none = it is not a part of the protocol."""
        return []


class DreamBench(PromptBenchmark):
    """30 subjects, 25 prompts each."""

    images_per_prompt = 4

    def prompts(self, data: Path, seed: int) -> list[BenchmarkPrompt]:
        root = data if (data / _LIST).is_file() else data / "dataset"
        if not (root / _LIST).is_file():
            raise UserError(f"{data / _LIST}: no such file; --data is DreamBooth's folder 'dataset', with its subjects")
        classes, lists = _read_list(root / _LIST)
        found = []
        for subject, name in classes.items():
            pictures = _pictures(root, subject)
            for number, template in enumerate(lists[name in _LIVING]):
                text = " ".join(template.replace("{0}", "").replace("{1}", name).split())
                start = text.index(name)
                prompt = Prompt(text, (Span(start, start + len(name), 0),))
                found.append(BenchmarkPrompt(f"{subject}_{number:02d}", prompt.template, text, (pictures,)))
        return found


class MultiBench(PromptBenchmark):
    """Prompts of several subjects."""

    images_per_prompt = 4

    def prompts(self, data: Path, seed: int) -> list[BenchmarkPrompt]:
        path = data / "prompts.jsonl"
        if not path.is_file():
            raise UserError(
                f'{path}: no such file; its lines are {{"prompt": "a {{cat}} and a {{dog}}", "subjects": {{"cat": folder, …}}}}'
            )
        found = []
        for number, line in enumerate(read_bounded(path, MAX_CAPTIONS_BYTES).splitlines(), start=1):
            if line.strip():
                try:
                    found.append(self._line(data, number, line))
                except (UserError, ValueError) as error:
                    raise UserError(f"{path}, line {number}: {error}") from None
        if not found:
            raise UserError(f"{path}: holds no prompt")
        return found

    def _line(self, data: Path, number: int, line: bytes) -> BenchmarkPrompt:
        values = parse_json(line)
        folders = values.get("subjects") if isinstance(values, dict) else None
        if not isinstance(folders, dict) or not all(isinstance(each, str) for each in folders.values()):
            raise UserError(f"holds {quoted(values)}: give an object with 'prompt', and 'subjects', word -> folder")
        prompt = parse(values.get("prompt"), folders)
        if not prompt.images:
            raise UserError(f"prompt {quoted(values['prompt'])} marks no subject: put its word in braces")
        return BenchmarkPrompt(
            f"{number:04d}",
            prompt.template,
            prompt.text,
            tuple(_pictures(data, prompt.images[span.subject]) for span in prompt.spans),
        )


class Coco30k(PromptBenchmark):
    """Captions of COCO's validation images of 2014."""

    images_per_prompt = 1
    has_subjects = False
    num_captions = 30_000

    def prompts(self, data: Path, seed: int) -> list[BenchmarkPrompt]:
        path = data / "annotations" / "captions_val2014.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; --data is COCO's folder, with 'annotations' and 'val2014'")
        entries = read_object(path, max_bytes=MAX_CAPTIONS_BYTES).field("annotations", list)
        captions = []
        for entry in entries:
            caption = entry.get("caption") if isinstance(entry, dict) else None
            if not isinstance(caption, str) or not caption.strip():
                raise UserError(f"{path}: an annotation is {quoted(entry)}: give objects with a 'caption'")
            captions.append(" ".join(caption.split()))
        chosen = np.random.default_rng(seed).permutation(len(captions))[: self.num_captions]
        return [
            BenchmarkPrompt(f"{number:05d}", Prompt(captions[index]).template, captions[index])
            for number, index in enumerate(chosen.tolist())
        ]

    def real_images(self, data: Path) -> list[Path]:
        folder = data / "val2014"
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; it holds COCO's validation images of 2014")
        return [folder / name for name in list_images(folder)]


BENCHMARKS: dict[str, PromptBenchmark] = {
    "dreambench": DreamBench(),
    "multibench": MultiBench(),
    "coco30k": Coco30k(),
}


def find_benchmark(name: str) -> PromptBenchmark:
    """Return a benchmark by name. Raises UserError for an unknown one."""
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


_LIST = "prompts_and_classes.txt"
_LIVING = ("cat", "dog")
_TEMPLATE = re.compile(r"'([^']*\{1\}[^']*)'")


def _read_list(path: Path) -> tuple[dict[str, str], dict[bool, list[str]]]:
    """Subject -> class, and the prompts for objects (False) and living subjects (True); the file is read, not run."""
    try:
        text = read_bounded(path, 2**20).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8") from None
    before, _, after = text.partition("Object Prompts")
    objects, _, living = after.partition("Live Subject Prompts")
    lists = {False: _TEMPLATE.findall(objects), True: _TEMPLATE.findall(living)}
    classes = dict(_class_lines(before))
    if not classes or not all(lists.values()):
        raise UserError(
            f"{path}: lists {len(classes)} subjects, {len(lists[False])} prompts for objects and {len(lists[True])} for living "
            "subjects: give DreamBooth's own file"
        )
    return classes, lists


def _class_lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, comma, kind = line.strip().partition(",")
        if comma and name != "subject_name":
            yield name.strip(), kind.strip()


def _pictures(root: Path, subject: Any) -> tuple[Path, ...]:
    if Path(subject).is_absolute() or ".." in Path(subject).parts:
        raise UserError(f"subject {quoted(subject)} is outside {root}: give the name of a folder in it")
    folder = root / subject
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it holds the pictures of {quoted(subject)}")
    names = list_images(folder)
    if not names:
        raise UserError(f"{folder}: holds no image")
    return tuple(folder / name for name in names)
