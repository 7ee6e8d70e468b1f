"""The kernels of forward mode compiled ahead of time, with no GPU: they fit, nothing spills, Hopper gets wgmma.

The default run takes a sample; the whole grid, hours on one core:
``MMDIT_KERNELS_FULL_GRID=1 pytest -m slow tests/kernels/test_jvp_compile.py``.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from mmdit_kernels.compile_cases import JVP_GRID, TRIED, AdaLN, Attention, Case, name
from mmdit_kernels.dispatch import interpreting, triton_version
from mmdit_kernels.launch import compile_ahead
from mmdit_kernels.testing import SHARED_MEMORY, resources

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(interpreting(), reason="the interpreter does not compile"),
]
FULL_GRID = bool(os.environ.get("MMDIT_KERNELS_FULL_GRID"))


def allowed_to_spill(case: Case) -> int:
    """Return 0, but for a compiler newer than those tried, and for float32 before 3.8, whose products take more registers."""
    version = tuple(int(part) for part in (triton_version() or "0").split("+")[0].split(".")[:2])
    if version > max(tuple(map(int, tried.split("."))) for tried in TRIED):
        return 128
    return 512 if isinstance(case, Attention) and case.dtype == "float32" and version < (3, 8) else 0


def check(case: Case) -> None:
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


SAMPLE: list[Case] = [
    Attention("jvp", "sm_90", "bfloat16", 72),
    Attention("jvp", "sm_90", "float32", 72),
    Attention("jvp", "sm_80", "float16", 40, "mask"),
    AdaLN("jvp", "sm_90", "bfloat16", 1152),
    AdaLN("jvp", "sm_80", "float32", 8192),
]


@pytest.mark.parametrize("case", SAMPLE, ids=name)
def test_sample(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=name(case)) for case in JVP_GRID if FULL_GRID])
def test_grid(case: Case) -> None:
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
