"""Every kernel compiled ahead of time, with no GPU: shared memory fits, nothing spills, and Hopper gets wgmma.

The default run takes a sample that covers every kernel, dtype and target; the whole grid, an hour on one core:
``MMDIT_KERNELS_FULL_GRID=1 pytest -m slow tests/kernels/test_compile.py -n auto``.
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import pytest
import torch
from mmdit_kernels.dispatch import interpreting
from mmdit_kernels.launch import Launch, compile_ahead
from mmdit_kernels.testing import SHARED_MEMORY, resources

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(interpreting(), reason="the interpreter does not compile"),
]

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPES = ("float32", "float16", "bfloat16")
FULL_GRID = bool(os.environ.get("MMDIT_KERNELS_FULL_GRID"))
HEAD_DIMS = (8, 16, 32, 40, 64, 72, 80, 96, 128)


class Attention(NamedTuple):
    """One attention kernel: ``features``: "plain", "transforms" (norm, rope), "mask" (and rests of blocks), "all"."""

    kernel: str
    target: str
    dtype: str
    d: int
    features: str = "plain"

    def launch(self) -> Launch:
        from mmdit_kernels.attention.launches import Inputs, backward_launches, forward_launch

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        b, h, n = 2, 16, 1000 if self.features in ("mask", "all") else 1024
        qkv = empty(b, n, 3, h, self.d, dtype=getattr(torch, self.dtype)).permute(2, 0, 3, 1, 4)
        transforms = self.features in ("transforms", "all")
        weight, table = (empty(self.d), empty(n, self.d)) if transforms else (None, None)
        mask = empty(b, n, dtype=torch.bool) if self.features in ("mask", "all") else None
        inputs = Inputs(*qkv, weight, weight, table, table, mask, self.d**-0.5)
        forward, out, stats = forward_launch(inputs, self.target)
        queries, keys, _ = backward_launches(inputs, torch.empty_like(out), out, stats, self.target)
        return {"forward": forward, "backward_q": queries, "backward_kv": keys}[self.kernel]


class AdaLN(NamedTuple):
    """One adaptive layer norm kernel."""

    kernel: str
    target: str
    dtype: str
    d: int
    gated: bool = True

    def launch(self) -> Launch:
        from mmdit_kernels.adaln.launches import backward_launch, forward_launch

        dtype = getattr(torch, self.dtype)
        x, y = (torch.empty(8, 256, self.d, dtype=dtype, device="meta") for _ in range(2))
        gate, shift, scale = torch.empty(8, 3 * self.d, dtype=dtype, device="meta").chunk(3, 1)
        more = (y, gate) if self.gated else (None, None)
        forward, _, _, stats = forward_launch(x, *more, shift, scale, 1e-6, dtype, dtype, self.target)
        if self.kernel == "forward":
            return forward
        return backward_launch(x, x, y if self.gated else None, *more, scale, stats, dtype, self.target)[0]


def check(case: Attention | AdaLN) -> None:
    compiled = compile_ahead(case.launch(), case.target)
    used = resources(compiled)
    assert 0 < used.shared + 1 <= SHARED_MEMORY[case.target], used
    assert used.spilled == 0, used
    if isinstance(case, Attention) and case.dtype != "float32":
        if case.target == "sm_90":
            assert "wgmma.mma_async" in compiled.asm["ptx"]
            assert "mma.sync" not in compiled.asm["ptx"]
        if case.target == "sm_100":
            assert "tcgen05.mma" in compiled.asm["ptx"]
    if isinstance(case, Attention) and case.d >= 64 and case.features == "plain" and case.target.startswith("sm_"):
        assert "cp.async.cg.shared.global" in compiled.asm["ptx"] or case.dtype == "float32"  # 16 bytes at a time


SAMPLE: list[Attention | AdaLN] = [
    Attention("forward", "sm_90", "bfloat16", 72),
    Attention("backward_q", "sm_90", "bfloat16", 72),
    Attention("backward_kv", "sm_90", "bfloat16", 72),
    Attention("backward_kv", "sm_90", "float16", 128, "all"),
    Attention("backward_q", "sm_90", "float32", 128, "transforms"),
    Attention("backward_kv", "sm_80", "float16", 96, "mask"),
    Attention("backward_q", "sm_80", "bfloat16", 72, "mask"),
    Attention("forward", "sm_80", "bfloat16", 96, "all"),
    Attention("forward", "sm_80", "float32", 40),
    Attention("forward", "sm_100", "float16", 64, "mask"),
    Attention("forward", "sm_100", "bfloat16", 72, "mask"),
    Attention("backward_kv", "sm_100", "bfloat16", 72),
    Attention("backward_q", "gfx942", "bfloat16", 80, "all"),
    AdaLN("backward", "sm_90", "bfloat16", 1152),
    AdaLN("backward", "sm_80", "float32", 8192),
    AdaLN("forward", "gfx942", "float16", 384, False),
]
GRID: list[Attention | AdaLN] = [
    Attention(kernel, target, dtype, d, features)
    for kernel in ("forward", "backward_q", "backward_kv")
    for target in TARGETS
    for dtype in DTYPES
    for d in HEAD_DIMS
    for features in ("plain", "transforms", "mask", "all")
] + [
    AdaLN(kernel, target, dtype, d, gated)
    for kernel in ("forward", "backward")
    for target in TARGETS
    for dtype in DTYPES
    for d in (48, 384, 768, 1152, 1408, 4096, 8192)
    for gated in (False, True)
]


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


def test_a_limit_on_registers_reaches_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdit_kernels.attention import configs

    case = Attention("forward", "sm_90", "bfloat16", 72)
    monkeypatch.setattr(configs, "tuned", lambda key: [128, 64, 8, 3, 128])
    assert resources(compile_ahead(case.launch(), case.target)).registers <= 128


def name(case: Attention | AdaLN) -> str:
    return f"{type(case).__name__.lower()}-" + "-".join(str(field) for field in case)


@pytest.mark.parametrize("case", SAMPLE, ids=name)
def test_sample(case: Attention | AdaLN) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", GRID if FULL_GRID else [], ids=name)
def test_grid(case: Attention | AdaLN) -> None:
    check(case)
