"""Writing prompts.jsonl of one split, and the pictures that it names: files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image

from mmdit.data.prompts import PROMPTS
from mmdit.data.writer import existing_stems
from mmdit.modalities.files import png
from mmdit.storage.files import atomic_file, write_atomically
from mmdit.storage.json_object import read_object
from mmdit.storage.names import nested_name, path_of

FOLDER = "prompts"
MAX_STEM = 235  # bytes; with a number and ".json" a name stays below 255


class PromptsWriter:
    """Describes the samples of a split. Any number of processes may, as long as no two describe one sample.

    While they do, each sample's line is a file of its own, ``prompts/<id>.json``; ``write`` makes prompts.jsonl of them.

    Args:
        folder: of the split.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stem(self, sample_id: str) -> str:
        """Return how the files of a sample are named, without a suffix; an id that is no path is made one."""
        return nested_name(sample_id, (".json", ".png"), MAX_STEM)

    def path(self, sample_id: str) -> Path:
        """Return the file of a sample's line."""
        return self.folder / path_of(f"{FOLDER}/{self.stem(sample_id)}.json")

    def existing(self) -> set[str]:
        """Return the stems of the samples whose line is there, and so is whole."""
        return existing_stems(self.folder / FOLDER, ".json")

    def save_picture(self, kind: str, sample_id: str, number: int, image: Image.Image) -> str:
        """Write a picture of entity ``number`` of a sample into the folder ``kind``; return its path as a line has it."""
        name = f"{kind}/{self.stem(sample_id)}_{number}.png"
        write_atomically(self.folder / path_of(name), png(image))
        return name

    def remove_pictures(self, kind: str, sample_id: str, start: int) -> None:
        """Remove what is there of entities from number ``start`` on: an older description had more."""
        for number in count(start):
            path = self.folder / path_of(f"{kind}/{self.stem(sample_id)}_{number}.png")
            if not path.exists():
                return
            path.unlink()

    def save(self, sample_id: str, captions: Sequence[str], entities: Sequence[Mapping[str, Any]]) -> None:
        """Write a sample's line, after its pictures; ``entities`` as ``entity_values`` makes them."""
        self.save_values({"id": sample_id, "captions": list(captions), "entities": list(entities)})

    def save_values(self, values: Mapping[str, Any]) -> None:
        """Write any values of a sample; those without captions are no line of prompts.jsonl, and are kept all the same."""
        write_atomically(self.path(values["id"]), prompt_line(values))

    def stored(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the values of samples that have been saved, in the order of ``ids``.

        Raises:
            UserError: a file that can't be read.
        """
        for sample_id in ids:
            path = self.path(sample_id)
            if path.exists():
                yield read_object(path, "delete it, and run the command again")

    def write(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Write prompts.jsonl and return how many lines it has; without any there is none."""
        remaining = iter(lines)
        first = next(remaining, None)
        if first is None:
            (self.folder / PROMPTS).unlink(missing_ok=True)
            return 0
        number = 0
        with atomic_file(self.folder / PROMPTS) as file:
            for values in chain([first], remaining):
                file.write(prompt_line(values))
                number += 1
        return number


def entity_values(
    phrase: str,
    spans: Sequence[tuple[int, int] | Sequence[int] | None],
    box: Sequence[float] | None,
    mask: str | None = None,
    images: Sequence[str] = (),
) -> dict[str, Any]:
    """Return an entity as a line has it; ``mmdit.data.prompts`` says what each value is."""
    return {"phrase": phrase, "spans": list(spans), "box": box, "mask": mask, "images": list(images)}


def prompt_line(values: Mapping[str, Any]) -> bytes:
    """Return a line of prompts.jsonl."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n"
