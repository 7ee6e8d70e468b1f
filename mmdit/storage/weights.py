"""Files of weights, checked before anything is built from them: whole, of floating point, and finite."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmdit.errors import UserError

_ARCHIVE = b"PK\x03\x04"  # how PyTorch tells, too
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype as safetensors names it, shape) of every tensor, without reading one.

    Raises:
        UserError: a missing file, or a header that doesn't describe the file: truncated, overlapping, of other sizes.
    """
    refuse_irregular(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError, TypeError) as error:
        raise UserError(f"{path}: truncated or damaged safetensors file ({error})") from error


def refuse_irregular(path: Path) -> None:
    """Raise UserError for a missing file, and for a folder, pipe, socket or device: reading a pipe would wait."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UserError(f"{path}: {'no such file' if missing else error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path}: is {kind}, not a file")


def check_dtypes(path: Path, header: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise UserError if a tensor is not of floating point: integers, cast, would make another model."""
    for name, (dtype, _) in header.items():
        if dtype not in FLOATING:
            raise UserError(f"{path}: {name} is of {dtype}; weights are {', '.join(sorted(FLOATING))}")


@lru_cache(maxsize=16)
def _damaged_part(path: Path, size: int, changed: int) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def is_archive(path: Path) -> bool:
    """Whether a file begins as those do that PyTorch writes since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == _ARCHIVE


def check_archive(path: str | os.PathLike[str]) -> None:
    """Compare every part of a .pt or .ckpt file with its checksum: PyTorch itself never does, and loads flipped bits.

    Files of PyTorch before 1.6 are not archives and have no checksums. Raises ValueError naming the damaged part.
    """
    path = Path(path)
    status = path.stat()
    if not is_archive(path):
        return
    try:
        damaged = _damaged_part(path, status.st_size, status.st_mtime_ns)
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as error:
        raise ValueError(f"the archive is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"the checksum of its part {damaged} is wrong")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one pass, and no copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def refuse_non_finite(weights: Iterable[tuple[str, Tensor]] | nn.Module, where: object) -> None:
    """Raise UserError where a weight is NaN or infinite, also after it was cast to half precision; names the first."""
    named = weights.state_dict().items() if isinstance(weights, nn.Module) else weights
    for name, tensor in named:
        if not is_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{where}: weight {name} holds NaN or infinity as {dtype}: take another copy of the weights"
                + (", or --dtype float32" if tensor.dtype == torch.float16 else "")
            )


def refuse_integers(state: Mapping[str, Tensor], module: nn.Module, where: object) -> None:
    """Raise UserError if the module has a tensor in floating point and ``state`` has not: loading would cast it."""
    for name, own in module.state_dict().items():
        if name in state and own.is_floating_point() and not state[name].is_floating_point():
            raise UserError(f"{where}: weight {name} is of {state[name].dtype}; it must be of floating point")
