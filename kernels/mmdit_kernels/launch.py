"""One kernel launch as data: run now, or compiled ahead of time for a target that is not here."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmdit_kernels.dispatch import on_device


class Launch(NamedTuple):
    """A Triton kernel, its number of programs, its arguments in order, and its compile-time constants and options."""

    kernel: Any
    programs: int
    arguments: tuple[Tensor | int | float | None, ...]
    constants: dict[str, Any]

    def run(self, device_of: Tensor) -> None:
        with on_device(device_of):
            self.kernel[(self.programs,)](*self.arguments, **self.constants)


def all_registers(target: str, num_warps: int) -> dict[str, int]:
    """Give a block all registers that it can have, by a constant of its launch; on AMD there is nothing to say.

    Left to itself the assembler makes room for more blocks, and at some widths spills a register for it.
    """
    return {"maxnreg": min(255, 65536 // (32 * num_warps))} if target.startswith("sm_") else {}


TYPE_NAMES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


def compile_ahead(launch: Launch, target: str) -> Any:
    """Compile a launch for "sm_90", "gfx942", … with no such device, specialised as triton does at a launch.

    Every pointer is taken to be on 16 bytes. Returns triton's CompiledKernel: ``asm``, ``metadata.shared``, ….
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    for index, name in enumerate(launch.kernel.arg_names):
        value = values[name] if name in values else launch.constants[name]
        kind = "constexpr"
        if isinstance(value, Tensor):
            kind = TYPE_NAMES[value.dtype]
        elif name in values and isinstance(value, float):
            kind = "fp32"
        elif name in values and isinstance(value, int) and value != 1:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        signature[name] = kind
        if kind == "constexpr":
            constants[(index,)] = value
        elif kind.startswith("*") or (kind.startswith("i") and value % 16 == 0):  # type: ignore[operator]
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    cuda = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32) if cuda else GPUTarget("hip", target, 64)
    options = {name: launch.constants[name] for name in OPTIONS if name in launch.constants}
    return triton.compile(source, target=gpu, options=options)
