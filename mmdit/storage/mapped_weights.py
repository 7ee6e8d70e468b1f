"""Weights that lie memory-mapped in a file, written to another one tensor by tensor."""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4; unlike MADV_DONTNEED it loses nothing, whatever the memory is


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file as diffusers does, with one tensor at a time in memory where the system lets go of pages.

    Raises:
        UserError: a tensor holds NaN or infinity.
    """
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"the weights hold NaN or infinity, in {name} and perhaps others: give another checkpoint"
                )
            file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
            _let_go(tensor)


def _let_go(tensor: Tensor) -> None:
    if sys.platform == "linux":
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = tensor.data_ptr() + tensor.nbytes - first
        if size >= mmap.PAGESIZE:  # does nothing where the kernel lacks this advice
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _PAGE_OUT)
