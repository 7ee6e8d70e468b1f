"""A dataset folder for a loader that must not stop at a bad sample: each item is a sample, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mmdit.data.folder import AlignedFolder
from mmdit.encoders.shard_sources import SampleState, sample_state
from mmdit.errors import UserError, one_line


@dataclass(frozen=True)
class Item:
    """A sample as ``AlignedFolder`` gives it, or the ``problem``; ``state``: of its files, read before they were."""

    id: str
    state: SampleState
    values: dict[str, Any] | None = None
    problem: str = ""


class GuardedFolder(Dataset[Item]):
    """Map-style dataset of ``Item``.

    Args:
        folder: the samples.
        like: an item of it (or of another split) whose size all must have.
    """

    def __init__(self, folder: AlignedFolder, like: dict[str, Any]) -> None:
        self.folder = folder
        self.like, self.size = like["id"], _size(like)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Item:
        sample = self.folder.samples[index]
        state = sample_state(sample, self.folder.modalities)
        try:
            values = self.folder[index]
        except UserError as error:
            return Item(sample.id, state, problem=str(error))
        except Exception as error:  # whatever a file holds, the others are encoded
            problem = f"sample {sample.id!r}: {type(error).__name__}: {one_line(error, 200)}"
            return Item(sample.id, state, problem=problem)
        (h, w), (h0, w0) = _size(values), self.size
        if (h, w) != (h0, w0):
            problem = f"sample {sample.id!r} has {w} x {h} pixels, {self.like!r} has {w0} x {h0}: give --size"
            return Item(sample.id, state, problem=problem)
        return Item(sample.id, state, values)


def collate(items: Sequence[Item]) -> tuple[list[Item], dict[str, Any] | None]:
    """Return the items without their values, and the batch of the good ones, None without any."""
    good = [item.values for item in items if item.values is not None]
    told = [Item(item.id, item.state, None, item.problem) for item in items]
    return told, default_collate(good) if good else None


def _size(values: dict[str, Any]) -> tuple[int, int]:
    height, width = next(v.shape[-2:] for v in values.values() if isinstance(v, Tensor) and v.ndim == 3)
    return height, width
