"""The kernels of forward mode compiled ahead of time, with no GPU: they fit, nothing spills, Hopper gets wgmma.

The default run takes a sample; the whole grid, hours on one core:
``MMDIT_KERNELS_FULL_GRID=1 pytest -m slow tests/kernels/test_jvp_compile.py``.
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import pytest
import torch
from mmdit_kernels.compile_cases import TRIED
from mmdit_kernels.dispatch import interpreting, triton_version
from mmdit_kernels.launch import Launch, compile_ahead
from mmdit_kernels.testing import SHARED_MEMORY, resources

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(interpreting(), reason="the interpreter does not compile"),
]
FULL_GRID = bool(os.environ.get("MMDIT_KERNELS_FULL_GRID"))
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


class Attention(NamedTuple):
    """``features``: "plain", "transforms" (norm, rope), "mask" (and rests of blocks), "all"."""

    target: str
    dtype: str
    d: int
    features: str = "plain"

    def launch(self) -> Launch:
        from mmdit_kernels.attention.jvp import jvp_launch
        from mmdit_kernels.attention.launches import Inputs

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        b, h, n = 2, 16, 1000 if self.features in ("mask", "all") else 1024
        qkv, tangents = (
            empty(b, n, 3, h, self.d, dtype=getattr(torch, self.dtype)).permute(2, 0, 3, 1, 4) for _ in range(2)
        )
        transforms = self.features in ("transforms", "all")
        weight, table = (empty(self.d), empty(n, self.d)) if transforms else (None, None)
        mask = empty(b, n, dtype=torch.bool) if self.features in ("mask", "all") else None
        inputs = Inputs(*qkv, weight, weight, table, table, mask, self.d**-0.5)
        return jvp_launch(inputs, *tangents, target=self.target)[0]


class AdaLN(NamedTuple):
    """The adaptive layer norm, plain or gated."""

    target: str
    dtype: str
    d: int
    gated: bool = True

    def launch(self) -> Launch:
        from mmdit_kernels.adaln.jvp import jvp_launch

        dtype = getattr(torch, self.dtype)

        def five() -> tuple[torch.Tensor, ...]:
            x, y = (torch.empty(8, 256, self.d, dtype=dtype, device="meta") for _ in range(2))
            gate, shift, scale = torch.empty(8, 3 * self.d, dtype=dtype, device="meta").chunk(3, 1)
            return (x, y, gate, shift, scale) if self.gated else (x, shift, scale)

        return jvp_launch(five(), five(), 1e-6, dtype, dtype, self.target)[0]


def allowed_to_spill(case: Attention | AdaLN) -> int:
    """Return 0, but for a compiler newer than those tried, and for float32 before 3.8, whose products take more registers."""
    version = tuple(int(part) for part in (triton_version() or "0").split("+")[0].split(".")[:2])
    if version > max(tuple(map(int, tried.split("."))) for tried in TRIED):
        return 128
    return 512 if isinstance(case, Attention) and case.dtype == "float32" and version < (3, 8) else 0


def check(case: Attention | AdaLN) -> None:
    compiled = compile_ahead(case.launch(), case.target)
    used = resources(compiled)
    assert 0 < used.shared + 1 <= SHARED_MEMORY[case.target], used
    assert used.spilled <= allowed_to_spill(case), used
    if isinstance(case, Attention) and case.dtype != "float32":
        if case.target == "sm_90":
            assert "wgmma.mma_async" in compiled.asm["ptx"]
            assert "mma.sync" not in compiled.asm["ptx"]
        if case.target == "sm_100":
            assert "tcgen05.mma" in compiled.asm["ptx"]


SAMPLE: list[Attention | AdaLN] = [
    Attention("sm_90", "bfloat16", 72),
    Attention("sm_90", "float32", 72),
    Attention("sm_80", "float16", 40, "mask"),
    AdaLN("sm_90", "bfloat16", 1152),
    AdaLN("sm_80", "float32", 8192),
]
GRID: list[Attention | AdaLN] = [
    Attention(target, dtype, d, features)
    for target in TARGETS
    for dtype in ("float32", "float16", "bfloat16")
    for d in (8, 32, 40, 64, 72, 80, 96, 128)
    for features in ("plain", "transforms", "mask", "all")
] + [
    AdaLN(target, dtype, d, gated)
    for target in TARGETS
    for dtype in ("float32", "bfloat16")
    for d in (48, 384, 768, 1152, 1408, 4096, 8192)
    for gated in (False, True)
]


def name(case: Attention | AdaLN) -> str:
    return f"{type(case).__name__.lower()}-" + "-".join(str(field) for field in case)


@pytest.mark.parametrize("case", SAMPLE, ids=name)
def test_sample(case: Attention | AdaLN) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=name(case)) for case in GRID if FULL_GRID])
def test_grid(case: Attention | AdaLN) -> None:
    check(case)


def test_views_are_read_in_place() -> None:
    """No copy of views of a packed projection; a tangent that is not there is one row that is read for all."""
    from mmdit_kernels.attention.jvp import jvp_launch
    from mmdit_kernels.attention.launches import Inputs

    (q, k, v), (q_dot, _, v_dot) = (torch.zeros(2, 5, 3, 4, 72).permute(2, 0, 3, 1, 4) for _ in range(2))
    launch, *_ = jvp_launch(Inputs(q, k, v, *(None,) * 5, 1.0), q_dot, None, v_dot, "sm_90")
    passed = launch.arguments
    assert all(mine is theirs for mine, theirs in zip(passed[:3], (q, k, v), strict=True))
    assert passed[3] is q_dot
    assert passed[5] is v_dot
    still = passed[4]
    assert isinstance(still, torch.Tensor)
    assert still.untyped_storage().nbytes() == 4 * 72
    assert launch.constants["ALIGNED"]
