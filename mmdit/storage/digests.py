"""SHA-256 digests by which results are told apart: of tensors, of files, of JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BLOCK = 2**20
_SHORT = 16


def digest_tensors(*states: Mapping[str, Tensor], dtype: torch.dtype | None = None, described: bool = False) -> str:
    """16 hexadecimal digits of tensors and their names, whatever file, device or order they came in.

    Args:
        states: state dicts, one after the other.
        dtype: convert to it first, so that a copy of other precision has the same digest where it holds the same values.
        described: count each tensor's dtype and shape too.
    """
    import torch

    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update((f"{name} {tensor.dtype} {tuple(tensor.shape)}" if described else name).encode())
            values = tensor.detach().to(dtype=dtype).cpu().contiguous()
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_SHORT]


def digest_file(path: Path) -> str:
    """64 hexadecimal digits of a file's content, read block by block."""
    return _add_file(hashlib.sha256(), path).hexdigest()


def digest_files(folder: Path, paths: Iterable[Path]) -> str:
    """64 hexadecimal digits of files below a folder, their names in it included."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.relative_to(folder).as_posix().encode())
        _add_file(digest, path)
    return digest.hexdigest()


def digest_json(values: Any) -> str:
    """16 hexadecimal digits of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_SHORT]


def _add_file(digest: hashlib._Hash, path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest
