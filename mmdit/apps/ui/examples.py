"""Pictures to begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmdit.errors import UserError
from mmdit.modalities import IMAGE, Codec


@dataclass(frozen=True)
class Example:
    """Aligned files of one sample, by modality."""

    name: str
    files: Mapping[str, Path]


def fitting(examples: Sequence[Example], codecs: Mapping[str, Codec]) -> list[Example]:
    """The examples that a model can be given: those with RGB, and of their files those that its codecs accept."""
    fit = [
        Example(each.name, {name: path for name, path in each.files.items() if _fits(path, codecs.get(name))})
        for each in examples
    ]
    return [example for example in fit if IMAGE in example.files]


def _fits(path: Path, codec: Codec | None) -> bool:
    try:
        return codec is not None and not codec.check_given(codec.read(path))
    except UserError:
        return False
