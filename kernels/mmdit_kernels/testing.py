"""What tests and benchmarks of the kernels share: error measures, and the resources of a compiled kernel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

# Bytes of shared memory that one block may have.
SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


def relative_rms(value: Tensor, reference: Tensor) -> float:
    """Return the root mean square of the error over that of the reference, in float64; nan if any value is."""
    value, reference = value.detach().double(), reference.detach().double()
    scale = reference.square().mean().sqrt().item()
    error = (value - reference).square().mean().sqrt().item()
    return error / scale if scale else error


def patch_language_once() -> None:
    """Make Triton's interpreter faster, by a fifth and more: it patches its language again at every call of a device function.

    For a process in which TRITON_INTERPRET is 1.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function: Any) -> object:
        modules = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        return patch(function) if any(tl.core.is_builtin(module.load) for module in modules) else None

    interpreter._patch_lang = patch_once


class Resources(NamedTuple):
    """Registers of a thread, bytes spilled to memory by a thread, bytes of shared memory of a block."""

    registers: int
    spilled: int
    shared: int


def resources(compiled: Any) -> Resources:
    """Read the resources of what ``compile_ahead`` returned, from the binary itself."""
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        spilled = sum(int(count) for count in re.findall(r"\.[vs]gpr_spill_count:\s*(\d+)", text))
        return Resources(int(re.findall(r"\.vgpr_count:\s*(\d+)", text)[0]), 4 * spilled, shared)
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", text)[0]) for name in ("REG", "STACK", "LOCAL"))
    return Resources(registers, stack + local, shared)


# Bytes of shared memory that the blocks of a multiprocessor share; each block takes 1024 more for itself.
_MULTIPROCESSOR_MEMORY = {"sm_80": 167_936, "sm_90": 233_472, "sm_100": 233_472, "gfx942": 65_536}


def blocks_per_multiprocessor(used: Resources, warps: int, target: str) -> int:
    """Return how many blocks a multiprocessor (a compute unit) holds at a time, by registers, shared memory and warps."""
    if target.startswith("gfx"):  # four SIMDs of 512 registers in pieces of 8, and at most eight waves
        waves = 4 * min(8, 512 // (-(-used.registers // 8) * 8))
        return min(waves // warps, _MULTIPROCESSOR_MEMORY[target] // max(used.shared, 1))
    by_registers = 65536 // (-(-32 * used.registers // 256) * 256)  # warps; a warp's registers come in pieces of 256
    by_memory = _MULTIPROCESSOR_MEMORY[target] // (used.shared + 1024)
    return min(by_registers // warps, by_memory, 64 // warps, 32)


class Code(NamedTuple):
    """What the generated code says: how far loads run ahead, their width, and its products.

    ``waits``: copies that may be under way after each wait for asynchronous copies; all 0 = nothing overlaps.
    ``product_waits``: the same of products. ``wide`` and ``narrow``: loads of 16 bytes or more a thread, and of fewer.
    """

    blocks: int
    waits: str
    product_waits: str
    wide: int
    narrow: int
    products: int


def code(compiled: Any, used: Resources, target: str) -> Code:
    """Read what ``compile_ahead`` returned."""
    blocks = blocks_per_multiprocessor(used, compiled.metadata.num_warps, target)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        loads = re.findall(r"(?:global|buffer)_load_(\w+)", text)
        wide = sum(load.startswith("dwordx4") for load in loads)
        return Code(blocks, "", "", wide, len(loads) - wide, len(re.findall(r"\bv_mfma_", text)))
    text = compiled.asm["ptx"]
    sizes = [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\],\s*(\w+)\s*[,;]", text)]
    for count, bits in re.findall(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfsu](\d+)\b", text):
        sizes.append(int(count or 1) * int(bits) // 8)
    waits = [str(int(count, 0)) for count in re.findall(r"cp\.async\.wait_group\s+(\w+)", text)]
    product_waits = re.findall(r"wgmma\.wait_group\.sync\.aligned\s+(\d+)", text)
    products = len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma\b", text))
    wide = sum(size >= 16 for size in sizes)
    return Code(blocks, " ".join(waits), " ".join(product_waits), wide, len(sizes) - wide, products)
