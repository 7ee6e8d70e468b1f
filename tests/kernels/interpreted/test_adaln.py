"""The adaptive layer norm kernels against float64: outputs and every gradient."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
from mmdit_kernels import gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.adaln.configs import KERNELS, shipped
from mmdit_kernels.adaln.reference import (
    gated_residual_layernorm_modulate_reference,
    gated_residual_layernorm_modulate_torch,
    layernorm_modulate_reference,
    layernorm_modulate_torch,
)
from mmdit_kernels.testing import relative_rms
from torch import Tensor

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FULL_GRID = bool(os.environ.get("MMDIT_KERNELS_FULL_GRID"))

PLAIN = (layernorm_modulate, layernorm_modulate_torch, layernorm_modulate_reference)
GATED = (
    gated_residual_layernorm_modulate,
    gated_residual_layernorm_modulate_torch,
    gated_residual_layernorm_modulate_reference,
)


def inputs_of(b: int, t: int, d: int, dtypes: tuple[torch.dtype, ...], gated: bool, offset: float) -> list[Tensor]:
    """Return x, (y, gate,) shift, scale; the vectors are chunks of one tensor, as a modulation layer gives them."""
    generator = torch.Generator().manual_seed(b + t + d)
    x = torch.randn(b, t, d, generator=generator) + offset
    y = torch.randn(b, d, t, generator=generator).transpose(1, 2)  # a copy has to be made
    gate, shift, scale = torch.randn(b, 3 * d, generator=generator).chunk(3, dim=1)
    tensors = [x, y, gate, shift, scale] if gated else [x, shift, scale]
    return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=False)]


def check(b: int, t: int, d: int, dtypes: tuple[torch.dtype, ...], gated: bool, offset: float = 0.0) -> None:
    tensors = inputs_of(b, t, d, dtypes, gated, offset)
    results = []
    for function, wide in zip(GATED if gated else PLAIN, (False, False, True), strict=True):
        leaves = [(x.double() if wide else x).detach().requires_grad_() for x in tensors]
        outs = function(*leaves, backend="triton") if "backend" in str(function.__kwdefaults__) else function(*leaves)
        outs = outs if gated else (outs,)
        generator = torch.Generator().manual_seed(0)
        d_outs = [torch.randn(b, t, d, generator=generator).to(results[0][i].dtype if results else out.dtype)
                  for i, out in enumerate(outs)]  # fmt: skip
        grads = torch.autograd.grad(outs, leaves, [g.to(out.dtype) for g, out in zip(d_outs, outs, strict=True)])
        results.append((*outs, *grads))
    for index, (ours, theirs, exact) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == theirs.dtype
        error, baseline = relative_rms(ours, exact), relative_rms(theirs, exact)
        # The norm of two numbers is ±1: a gradient through it vanishes but for eps, and has no relative error of its own.
        bound = 2e-6 if ours.dtype == F32 and set(dtypes) == {F32} and d > 2 else 1.2 * baseline
        assert error <= max(bound, 1e-7), f"result {index}: {error:.2e}, PyTorch {baseline:.2e}"


@pytest.mark.parametrize(
    ("b", "t", "d", "dtypes", "gated"),
    [
        (1, 1, 1, (F32,) * 5, False),
        (3, 37, 72, (F32,) * 5, False),
        (2, 33, 1152, (F32,) * 5, True),
        (3, 5, 1000, (BF16,) * 5, True),
        (1, 70, 384, (BF16,) * 5, False),
        (2, 17, 768, (F16,) * 5, True),
        (1, 3, 8192, (BF16,) * 5, True),
        (2, 7, 264, (F32, BF16, BF16, F32, BF16), True),
        (2, 9, 48, (BF16, F32, F32), False),
    ],
    ids=str,
)
def test_outputs_and_gradients(b: int, t: int, d: int, dtypes: tuple[torch.dtype, ...], gated: bool) -> None:
    if d == 1:  # the norm of one number is zero: only the shift is left
        x, shift, scale = (torch.ones(1, 1), torch.full((1, 1), 3.0), torch.ones(1, 1))
        assert layernorm_modulate(x[None], shift, scale, backend="triton").item() == 3
        return
    check(b, t, d, dtypes, gated)


@pytest.mark.parametrize(("t", "d", "dtype"), [(37, 72, F32), (11, 1152, BF16), (9, 4104, F32)])
def test_shipped_tiles(t: int, d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of a GPU, which are not the interpreter's own: fewer tokens at a time, several chunks of a batch.

    At these widths all GPUs have the same but for warps and stages, which the interpreter knows nothing of.
    """
    for kernel in KERNELS:
        tiles = (shipped(kernel, target, d, 2, t) for target in ("sm_80", "sm_90", "gfx942"))
        assert len({(found.rows, found.chunk, found.piece) for found in tiles}) == 1
    # float32 in the backward has options of sm_ beside its tiles
    monkeypatch.setattr(import_module("mmdit_kernels.adaln.launches"), "target_of", lambda device: "sm_90")
    check(2, t, d, (dtype,) * 5, True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param(dtype, id=str(dtype)[6:]) for dtype in (F32, F16, BF16) if FULL_GRID])
@pytest.mark.parametrize("gated", [False, True])
def test_grid(dtype: torch.dtype, gated: bool) -> None:
    for d in (2, 7, 16, 31, 64, 100, 384, 768, 1000, 1152, 1408, 2048, 3072, 4096, 5000, 8192):
        for b, t in ((1, 1), (3, 35), (2, 129)):
            check(b, t, d, (dtype,) * 5, gated)


def test_a_large_mean_costs_no_more_than_in_pytorch() -> None:
    """Mean 1000 times the deviation: the variance is taken after the mean is subtracted."""
    x, shift, scale = inputs_of(2, 5, 160, (F32,) * 3, False, 1e3)
    exact = layernorm_modulate_reference(x.double(), shift.double(), scale.double())
    error = relative_rms(layernorm_modulate(x, shift, scale, backend="triton"), exact)
    assert error <= 1.2 * relative_rms(layernorm_modulate_torch(x, shift, scale), exact)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(used: int) -> None:
    """A gradient for h only, or for the norm only."""
    tensors = inputs_of(2, 5, 24, (F32,) * 5, True, 0.0)
    grads = []
    for function in (GATED[0], GATED[2]):
        leaves = [x.detach().requires_grad_() for x in tensors]
        options = {"backend": "triton"} if function is GATED[0] else {}
        function(*leaves, **options)[used].square().sum().backward()
        grads.append([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_repeats_are_identical() -> None:
    tensors = inputs_of(1, 70, 40, (BF16,) * 5, True, 0.0)
    grads = []
    for _ in range(2):
        leaves = [x.detach().requires_grad_() for x in tensors]
        h, out = gated_residual_layernorm_modulate(*leaves, backend="triton")
        (h.float().square().sum() + out.float().square().sum()).backward()
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))
