"""The rules of ``<split>/prompts.jsonl``, once: captions of samples, and where their words are in the picture.

One JSON object a line, as in the manifest: ``id`` of a sample; ``captions``, one or more texts; ``entities``, a list of
{"phrase", "spans": a [start, end] in characters for each caption, or null where it leaves the entity out, "box": [x0, y0, x1,
y1] in pixels or null, "mask": path or null, "images": paths of other pictures of the same subject}. Braces may stand in captions,
and not in the words of a span: prompts mark those by braces.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmdit.data.lines import MAX_LINE, Rules, read_id
from mmdit.data.paths import PathRule
from mmdit.data.problems import Problem
from mmdit.errors import UserError
from mmdit.prompt import has_brace
from mmdit.storage.json_text import BOM, has_surrogate, parse_json, quoted

PROMPTS = "prompts.jsonl"
NO_PROMPT = "lists no prompt: give each line an id and captions, or delete it"
MAX_TEXT = 10_000
_USUAL_LINE = 4096  # bytes


@dataclass(frozen=True)
class Entity:
    """What some words of the captions name.

    Args:
        phrase: its name, such as "red torus".
        spans: for each caption (start, end), or None where it leaves the entity out.
        box: (x0, y0, x1, y1) in pixels, x1 and y1 excluded; None = not known.
        mask: picture that is not black where the entity is; None = none.
        images: other pictures of the same subject.
    """

    phrase: str
    spans: tuple[tuple[int, int] | None, ...]
    box: tuple[float, float, float, float] | None = None
    mask: Path | None = None
    images: tuple[Path, ...] = ()

    @property
    def noun(self) -> str:
        """What it is: the last word of the phrase."""
        return self.phrase.split()[-1]


@dataclass(frozen=True)
class CaptionedSample:
    """One line: the sample's id, its captions and entities."""

    id: str
    captions: tuple[str, ...]
    entities: tuple[Entity, ...] = ()


def parse_prompts(
    rules: Rules, ids: Collection[str] | None = None, file: str = PROMPTS
) -> Iterator[tuple[CaptionedSample | None, list[Problem]]]:
    """Yield each line that is not blank, and what is wrong with it; the sample is None where anything is.

    Args:
        rules: the dataset and the split.
        ids: of the split's samples; None = not known, so not compared.
        file: in the split's folder.

    Raises:
        OSError: the file can't be read.
    """
    with (rules.root / rules.split / file).open("rb") as stream:
        for _, sample, problems in _parsed(stream, rules, ids, file):
            yield sample, problems


def _parsed(
    stream: BinaryIO, rules: Rules, ids: Collection[str] | None, file: str
) -> Iterator[tuple[int, CaptionedSample | None, list[Problem]]]:
    """As ``parse_prompts``, with the position of each line in the file."""
    folder = rules.root / rules.split
    paths = PathRule(rules.root, rules.split, rules.allow_outside)
    seen: set[str] = set()
    number, position = 0, 0
    while line := stream.readline(MAX_LINE + 1):
        number, start = number + 1, position
        position += len(line)
        name, reasons = "", [f"the line is longer than {MAX_LINE} bytes"]
        sample = None
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
                position += len(line)
        elif not line.strip():
            continue
        else:
            sample, name, reasons = _line(line.removeprefix(BOM) if number == 1 else line, folder, paths)
            if name in seen:
                reasons.append(f"id {quoted(name)} appears twice")
            elif ids is not None and name and name not in ids:
                reasons.append(f"id {quoted(name)} is not in the manifest")
            seen.add(name)
        where = name and f"{rules.split}/{name}"
        problems = [Problem(f"{rules.split}/{file}", reason, where, number) for reason in reasons]
        yield start, (None if reasons else sample), problems


class CaptionedSamples(Mapping[str, CaptionedSample]):
    """The samples of a split's prompts.jsonl by id. All lines are judged once, and each is parsed again when it is asked for:
    a million of them, parsed, would be gigabytes in every process of a run.

    Args:
        rules: the dataset and the split.
        ids: of the split's samples; None = not known, so not compared.

    Raises:
        UserError: the first of what is wrong with the lines; later, a file that has changed.
    """

    def __init__(self, rules: Rules, ids: Collection[str] | None = None) -> None:
        self.folder = rules.root / rules.split
        self._paths = PathRule(rules.root, rules.split, rules.allow_outside)
        self._positions: dict[str, int] = {}
        # It stays open: a render that goes on writes another file in its place.
        self._descriptor: int | None = os.open(self.folder / PROMPTS, os.O_RDONLY)
        with os.fdopen(os.dup(self._descriptor), "rb") as stream:
            for position, sample, problems in _parsed(stream, rules, ids, PROMPTS):
                if problems:
                    raise problems[0].error(rules.root)
                assert sample is not None
                self._positions[sample.id] = position

    def __getitem__(self, name: str) -> CaptionedSample:
        line = self._read_line(self._positions[name])
        sample, found, reasons = _line(line.removeprefix(BOM), self.folder, self._paths)
        path = self.folder / PROMPTS
        if found != name:
            raise UserError(f"{path}: has changed since the start: sample {name!r} is not where it was; start again")
        if sample is None or reasons:
            raise UserError(f"{path}: sample {name!r}: {reasons[0]}")
        return sample

    def _read_line(self, position: int) -> bytes:
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.folder / PROMPTS, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.folder / PROMPTS}: can't be read: {error.strerror}") from None
        for count in (_USUAL_LINE, MAX_LINE + 1):  # most lines are short
            line, mark, _ = os.pread(self._descriptor, count, position).partition(b"\n")
            if mark:
                break
        return line

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}  # another process opens its own

    def __del__(self) -> None:
        if self.__dict__.get("_descriptor") is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def read_prompts(rules: Rules, ids: Collection[str] | None = None) -> Mapping[str, CaptionedSample]:
    """Read the captions of a split by sample id, {} where it has none.

    Raises:
        UserError: the first of what is wrong with its lines.
    """
    return CaptionedSamples(rules, ids) if (rules.root / rules.split / PROMPTS).is_file() else {}


def _line(line: bytes, folder: Path, paths: PathRule) -> tuple[CaptionedSample | None, str, list[str]]:
    try:
        values = parse_json(line)
    except ValueError as error:
        return None, "", [str(error)]
    name = read_id(values) if isinstance(values, dict) else None
    if name is None:
        return None, "", [f"holds {quoted(values)}: every line is an object with an 'id' and 'captions'"]
    captions = values.get("captions")
    if not isinstance(captions, list) or not captions or not all(_is_text(text) for text in captions):
        return (
            None,
            name,
            [f"'captions' is {quoted(captions)}: give a list of one text or more, {MAX_TEXT} characters at most"],
        )
    entities = values.get("entities")
    if not isinstance(entities, list | None):
        return None, name, [f"'entities' is {quoted(entities)}: give a list of objects"]
    made, reasons = [], []
    for entity in entities or []:
        try:
            made.append(_entity(entity, captions, folder, paths))
        except UserError as error:
            reasons.append(str(error))
    return CaptionedSample(name, tuple(captions), tuple(made)), name, reasons


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= MAX_TEXT and not has_surrogate(value)


def _entity(value: Any, captions: list[str], folder: Path, paths: PathRule) -> Entity:
    if not isinstance(value, dict) or not _is_text(value.get("phrase")):
        raise UserError(f"an entity is {quoted(value)}: give an object with a 'phrase'")
    what = f"entity {quoted(value['phrase'])}"
    spans = value.get("spans")
    if not isinstance(spans, list) or len(spans) != len(captions):
        raise UserError(f"{what}: 'spans' is {quoted(spans)}: give one for each of the {len(captions)} captions")
    for span, text in zip(spans, captions, strict=True):
        if span is not None and not (_are_numbers(span, 2, int) and 0 <= span[0] < span[1] <= len(text)):
            raise UserError(f"{what}: span {quoted(span)} does not fit its caption of {len(text)} characters")
        if span is not None and has_brace(words := text[slice(*span)]):
            raise UserError(
                f"{what}: its words {quoted(words)} hold a brace, which in prompts marks what a picture stands for: give words "
                "without, or null"
            )
    box = value.get("box")
    if box is not None and not (_are_numbers(box, 4, (int, float)) and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise UserError(f"{what}: box {quoted(box)}: give [x0, y0, x1, y1] in pixels, or null")
    images = value.get("images") or []
    if not isinstance(images, list):
        raise UserError(f"{what}: 'images' is {quoted(images)}: give a list of paths")
    mask = value.get("mask")
    for path in [*images, *([] if mask is None else [mask])]:
        if why := paths.wrong(path):
            raise UserError(f"{what}: {quoted(path)}: {why}")
        if not (folder / path).is_file():
            raise UserError(f"{what}: {quoted(path)}: no such file")
    return Entity(
        value["phrase"],
        tuple(None if span is None else (span[0], span[1]) for span in spans),
        None if box is None else (box[0], box[1], box[2], box[3]),
        None if mask is None else folder / mask,
        tuple(folder / image for image in images),
    )


def _are_numbers(value: Any, count: int, kind: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == count
    return numbers and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
