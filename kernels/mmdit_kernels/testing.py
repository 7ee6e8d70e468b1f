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
