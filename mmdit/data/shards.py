"""Reading entries of a safetensors file straight into a batch's memory, in the process that asks.

Plain reads and no memory map: a file that was cut short or lies on a disk that fails gives an error that names it, where a
map would kill the process; and network file systems serve one request per entry, not one per page.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.storage.json_text import parse_json

DTYPES = {"F16": np.dtype(np.float16), "BOOL": np.dtype(np.bool_), "I64": np.dtype(np.int64)}
# Each process keeps this many files open; a process may have 1024 by default.
MAX_OPEN = 512
MAX_HEADER = 2**20
_AGAIN = "delete it and run 'mmdit data encode' again"


class OpenFiles:
    """Descriptors by path, opened when asked for, the oldest closed beyond ``MAX_OPEN``. A copy in another process is empty."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def descriptor(self, path: Path) -> int:
        """Open ``path``, or return what is open. Raises UserError where it is missing."""
        found = self._descriptors.get(path)
        if found is None:
            if len(self._descriptors) >= MAX_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            try:
                found = self._descriptors[path] = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise _missing(path) from None
        return found

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _missing(path: Path) -> UserError:
    return UserError(f"{path}: the shard is missing; run 'mmdit data encode' again, it writes what is lost")


class ShardFile:
    """The header of a safetensors file, and reads at the places that it names.

    Args:
        path: the file. Its header is read, and compared with the file's size, here.

    Attributes:
        content: the key that says what it was made from, "" where it has none.

    Raises:
        UserError: a file that is missing, truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size, start, header = _read_header(path)
            metadata = header.pop("__metadata__", None)
            self.tensors = _tensors(header, start, size)
        except FileNotFoundError:
            raise _missing(path) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: truncated or damaged shard ({error}); {_AGAIN}") from None
        self.content = str(metadata.get("content", "")) if isinstance(metadata, dict) else ""

    def check(self, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Compare with what the index says, key -> (dtype, shape). Raises UserError."""
        for key, (dtype, shape) in wanted.items():
            found = self.tensors.get(key, (dtype, None, 0))
            if found[1] != shape or found[0] != dtype:
                got = None if found[1] is None else list(found[1])
                kind = "" if found[0] == dtype else f" and type {found[0]}, not {dtype}"
                raise UserError(f"{self.path}: {key!r} has shape {got}{kind}, the index says {list(shape)}: {_AGAIN}")

    def check_content(self, wanted: str | None) -> None:
        """Compare with the key that the index has; None = it has none. Raises UserError."""
        if wanted is not None and self.content != wanted:
            raise UserError(f"{self.path}: is not the shard that the index was written with: {_AGAIN}")

    def whole(self, key: str, files: OpenFiles) -> Tensor:
        """Read a whole tensor."""
        dtype, shape, start = self.tensors[key]
        array = np.empty(shape, DTYPES[dtype])
        if array.size:
            self._read(files.descriptor(self.path), array.reshape(-1).view(np.uint8), start)
        return torch.from_numpy(array)

    def read(self, entry: int, targets: Mapping[str, np.ndarray], files: OpenFiles) -> None:
        """Read entry number ``entry``, counted over the dimensions before the targets' own, into each key's target.

        A target is a contiguous array of uint8, as many as an entry has bytes.
        """
        descriptor = files.descriptor(self.path)
        for key, target in targets.items():
            self._read(descriptor, target, self.tensors[key][2] + entry * target.nbytes)

    def _read(self, descriptor: int, target: np.ndarray, offset: int) -> None:
        try:
            count = os.preadv(descriptor, [target.data], offset)
        except OSError as error:
            raise UserError(f"{self.path}: can't be read: {error.strerror}") from error
        if count != target.nbytes:
            raise UserError(f"{self.path}: the shard was truncated while it was in use; {_AGAIN}")


def _read_header(path: Path) -> tuple[int, int, dict[str, Any]]:
    """The file's size, where its tensors begin, and its header. Raises ValueError where it has none."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, MAX_HEADER):
            raise ValueError(f"{size} bytes")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return size, 8 + length, header


def _tensors(header: Mapping[str, Any], start: int, size: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """key -> (dtype, shape, offset in the file). Raises ValueError where tensors overlap, leave gaps or misfit their shapes."""
    found, spans = {}, []
    for key, entry in header.items():
        if not isinstance(entry, dict):
            raise ValueError(f"the entry of {key!r} is not an object")
        dtype, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"the entry of {key!r} has no dtype, shape and data_offsets")
        begin, end = offsets
        if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{key!r} of shape {shape} has {end - begin} bytes")
        found[key] = dtype, tuple(shape), start + begin
        spans.append((begin, end, key))
    place = 0
    for begin, end, key in sorted(spans):
        if begin != place or end < begin:
            raise ValueError(f"{key!r} overlaps another tensor, or leaves a gap before it")
        place = end
    if start + place != size:
        raise ValueError(f"{size} bytes, its header says {start + place}")
    return found


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def half_batch(shape: tuple[int, ...], entry_dims: int) -> tuple[Tensor, Any]:
    """An empty float16 batch, and its bytes (…, bytes per entry), the last ``entry_dims`` dimensions flattened, to read into."""
    array = np.empty(shape, np.float16)
    lead = shape[: len(shape) - entry_dims]
    return torch.from_numpy(array), array.reshape(*lead, -1).view(np.uint8)
