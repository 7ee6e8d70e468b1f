"""A dataset folder for a loader that must not stop at a bad sample: each item is a sample, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import Sample
from mmdit.data.shard_sources import SampleState, sample_state
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
            problem = (
                f"sample {sample.id!r} ({_a_file(self.folder, sample)}) has {h} x {w} pixels (height x width), "
                f"{self.like!r} has {h0} x {w0}: give --size, such as {h0}x{w0}"
            )
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


def check_image_size(folder: AlignedFolder, sample: Mapping[str, Any], downsampling: int) -> None:
    """Raise UserError for images whose sides are not multiples of the VAE's downsampling; it names the first file."""
    height, width = sample[next(iter(folder.modalities))].shape[-2:]
    if height % downsampling == 0 and width % downsampling == 0:
        return
    path = _a_file(folder, next(each for each in folder.samples if each.id == sample["id"]))
    fitting = "x".join(str(max(1, side // (2 * downsampling)) * 2 * downsampling) for side in (height, width))
    raise UserError(
        f"{path}: {height} x {width} pixels (height x width): both must be multiples of {downsampling}, the VAE's "
        f"downsampling (of {2 * downsampling} for patches of 2): give --size, such as {fitting}"
    )


def _a_file(folder: AlignedFolder, sample: Sample) -> Path:
    """One that is read of the sample, to name it by."""
    return next(path for name in folder.modalities if (path := sample.files.get(name)) is not None)
