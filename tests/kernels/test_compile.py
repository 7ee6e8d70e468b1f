"""Every kernel compiled ahead of time, with no GPU: shared memory fits, nothing spills, and Hopper gets wgmma.

The default run takes a sample that covers every kernel, dtype and target; the whole grid, an hour on one core:
``MMDIT_KERNELS_FULL_GRID=1 pytest -m slow tests/kernels/test_compile.py -n auto``.
"""

from __future__ import annotations

import importlib.util
import os
import warnings

import pytest
import torch
from mmdit_kernels.attention.rotation import old_compiler
from mmdit_kernels.compile_cases import GRID, ROTATIONS, TRIED, AdaLN, Attention, Case, name
from mmdit_kernels.dispatch import interpreting, triton_version
from mmdit_kernels.launch import compile_ahead
from mmdit_kernels.testing import SHARED_MEMORY, blocks_per_multiprocessor, code, resources

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(interpreting(), reason="the interpreter does not compile"),
]

FULL_GRID = bool(os.environ.get("MMDIT_KERNELS_FULL_GRID"))
FEW_BYTES = 128  # what a compiler that nobody has tried may spill


def check(case: Case) -> None:
    """Assert that a kernel fits and spills nothing; a compiler newer than those tried may spill a little, with a warning."""
    compiled = compile_ahead(case.launch(), case.target)
    used = resources(compiled)
    assert 0 < used.shared + 1 <= SHARED_MEMORY[case.target], used
    assert used.spilled <= allowed_to_spill(triton_version() or "0"), used
    if used.spilled:
        warnings.warn(
            f"triton {triton_version()} spills {used.spilled} bytes in {name(case)}; the tiles were chosen with "
            f"{', '.join(TRIED)}: run kernels/benchmarks/compile_grid.py and choose again", stacklevel=2,
        )  # fmt: skip
    assert code(compiled, used, case.target).blocks >= 1
    if isinstance(case, Attention) and case.dtype != "float32" and case.kernel not in ROTATIONS:
        if case.target == "sm_90":
            assert "wgmma.mma_async" in compiled.asm["ptx"]
            assert "mma.sync" not in compiled.asm["ptx"]
        if case.target == "sm_100":
            assert "tcgen05.mma" in compiled.asm["ptx"]
    if isinstance(case, Attention) and case.d >= 64 and case.features == "plain" and case.target.startswith("sm_"):
        assert "cp.async.cg.shared.global" in compiled.asm["ptx"] or case.dtype == "float32"  # 16 bytes at a time


def allowed_to_spill(version: str) -> int:
    """Return 0 for the versions that were tried and older ones, ``FEW_BYTES`` for newer ones."""
    numbers = [tuple(int(part) for part in text.split("+")[0].split(".")[:2]) for text in (version, *TRIED)]
    return FEW_BYTES if numbers[0] > max(numbers[1:]) else 0


SAMPLE: list[Case] = [
    Attention("forward", "sm_90", "bfloat16", 72),
    Attention("backward_q", "sm_90", "bfloat16", 72),
    Attention("backward_kv", "sm_90", "bfloat16", 72),
    Attention("backward", "sm_90", "bfloat16", 72),
    Attention("backward_kv", "sm_90", "float16", 128, "all"),
    Attention("backward_kv", "sm_90", "bfloat16", 72, "all"),
    Attention("backward_q", "sm_90", "float32", 128, "transforms"),
    Attention("backward_kv", "sm_80", "float16", 96, "mask"),
    Attention("backward_q", "sm_80", "bfloat16", 72, "mask"),
    Attention("forward", "sm_80", "bfloat16", 96, "all"),
    Attention("forward", "sm_80", "float32", 40),
    Attention("forward", "sm_100", "float16", 64, "mask"),
    Attention("forward", "sm_100", "bfloat16", 72, "mask"),
    Attention("backward_kv", "sm_100", "bfloat16", 72),
    Attention("backward_q", "gfx942", "bfloat16", 80, "all"),
    Attention("rotation", "sm_90", "bfloat16", 72, "transforms"),
    Attention("rotation_backward", "sm_80", "float16", 128, "all"),
    Attention("rotation_backward", "gfx942", "bfloat16", 72, "transforms"),
    AdaLN("backward", "sm_90", "bfloat16", 1152),
    AdaLN("backward", "sm_90", "float32", 1152),
    AdaLN("backward", "sm_80", "float32", 8192),
    AdaLN("backward", "gfx942", "float32", 4096),
    AdaLN("forward", "gfx942", "float16", 384, False),
]


def test_only_a_compiler_that_nobody_tried_may_spill() -> None:
    assert [allowed_to_spill(version) for version in ("3.5.0", "3.8.0", TRIED[-1] + ".1", "3.99.0+git1", "4.0")] == [
        *(0, 0, 0, FEW_BYTES, FEW_BYTES)
    ]


def test_blocks_of_a_multiprocessor() -> None:
    """By hand, on an H100 (64 Ki registers, 228 KiB): registers, shared memory, or 64 warps are the limit."""
    from mmdit_kernels.testing import Resources

    cases = [((137, 0, 81_920), 8, 1), ((128, 0, 81_920), 8, 2), ((40, 0, 2_048), 4, 12), ((32, 0, 0), 4, 16)]
    for used, warps, blocks in cases:
        assert blocks_per_multiprocessor(Resources(*used), warps, "sm_90") == blocks


def test_views_are_read_in_place() -> None:
    """No copy of q, k, v as views of a packed projection, nor of a gradient that autograd expanded."""
    from mmdit_kernels.attention.launches import Inputs, backward_launches, forward_launch

    q, k, v = torch.zeros(2, 5, 3, 4, 72).permute(2, 0, 3, 1, 4)
    inputs = Inputs(q, k, v, None, None, None, None, None, 1.0)
    forward, out, stats = forward_launch(inputs, "sm_90")
    assert out.transpose(1, 2).is_contiguous()
    d_out = torch.ones(1).expand_as(out)
    queries, keys, _ = backward_launches(inputs, d_out, out, stats, "sm_90")
    for launch in (forward, queries, keys):
        assert all(mine is theirs for mine, theirs in zip(launch.arguments, (q, k, v), strict=False))
    assert queries.arguments[4] is keys.arguments[3] is d_out
    assert forward.constants["ALIGNED"]
    assert not keys.constants["ALIGNED"]


def test_a_size_of_one_compiles() -> None:
    """triton makes a constant of an argument that is 1, without a tensor's methods; the interpreter does not."""
    from mmdit_kernels.adaln.launches import backward_launch

    x, vector, stats = (torch.empty(shape, device="meta") for shape in ((1, 1, 1), (1, 1), (2, 1, 1)))
    launch, _ = backward_launch(x, x, x, x, vector, vector, stats, x.dtype, "sm_90")
    assert resources(compile_ahead(launch, "sm_90")).spilled == 0


def test_two_blocks_share_a_multiprocessor_and_copies_run_ahead() -> None:
    """What the tiles of XL/2 on sm_90 were chosen for: while a step is computed, the copies of the next are under way."""
    cases: list[tuple[Case, int]] = [
        *((Attention(kernel, "sm_90", "bfloat16", 72), 2) for kernel in ("forward", "backward_q", "backward_kv")),
        (Attention("backward", "sm_90", "bfloat16", 72), 1),
        *((AdaLN("backward", "sm_90", dtype, 1152), 3) for dtype in ("bfloat16", "float32")),
    ]
    for case, blocks in cases:
        compiled = compile_ahead(case.launch(), case.target)
        found = code(compiled, resources(compiled), case.target)
        assert found.blocks >= blocks, (case, found)
        assert int(found.waits.split()[0]) > 0, (case, found)


def test_a_limit_on_registers_reaches_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdit_kernels.attention import configs

    case = Attention("forward", "sm_90", "bfloat16", 72)
    monkeypatch.setattr(configs, "tuned", lambda key, device: [128, 64, 8, 3, 128])
    assert resources(compile_ahead(case.launch(), case.target)).registers <= 128


@pytest.mark.parametrize("case", SAMPLE, ids=name)
def test_sample(case: Case) -> None:
    if isinstance(case, Attention) and case.dtype == "float32" and case.features == "transforms" and old_compiler():
        case = case._replace(features="plain")  # norm and rotation are done ahead
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=name(case)) for case in GRID if FULL_GRID])
def test_grid(case: Case) -> None:
    check(case)
