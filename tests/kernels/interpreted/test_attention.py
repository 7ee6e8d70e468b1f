"""The attention kernels against float64: output and every gradient."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
from attention_cases import BF16, F16, F32, FLOAT32_LIMIT, RATIO_LIMIT, Case, check, qkv_of
from mmdit_kernels import attention
from mmdit_kernels.attention.configs import KERNELS, shipped
from mmdit_kernels.attention.reference import attention_reference, attention_torch
from mmdit_kernels.testing import relative_rms

# Every dtype, head dimension, layout and feature, and most pairs of them; the slow grid has all.
CASES = [
    Case(F32, 8, 1, 1, h=3),
    Case(F32, 72, 70, 70, b=3, norm=True, rope=2, mask=True),
    Case(F32, 64, 129, 33, layout="columns"),
    Case(F32, 96, 17, 300, mask=True, b=2, layout="shared"),
    Case(F32, 40, 65, 65, norm=True, rope=3, b=2),
    Case(BF16, 72, 300, 300),
    Case(BF16, 72, 70, 70, norm=True, rope=2),
    Case(BF16, 128, 33, 129, norm=True, mask=True, b=2, layout="shared"),
    Case(BF16, 16, 33, 65, h=3, layout="columns"),
    Case(BF16, 80, 64, 32, h=3, mask=True),
    Case(F16, 72, 67, 131, mask=True, b=2),
    Case(F16, 32, 45, 45, rope=3, b=3),
    Case(F16, 88, 31, 31, norm=True, layout="columns"),
    Case(F16, 64, 128, 64, h=3, layout="shared"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{str(case.dtype)[6:]}-d{case.d}-n{case.n}-s{case.s}")
def test_output_and_gradients(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("d", [8, 16, 32, 40, 64, 72, 80, 96, 128])
def test_every_head_dimension(dtype: torch.dtype, d: int) -> None:
    """Odd sizes, rests of blocks; the features and layouts take turns."""
    turn = d // 8 + (F32, F16, BF16).index(dtype)
    if turn % 3 == 0:
        check(Case(dtype, d, 67, 67, b=1, h=1, norm=True, rope=2 + turn % 2))
    elif turn % 3 == 1:
        check(Case(dtype, d, 67, 35, b=3, h=1, mask=True))
    else:
        check(Case(dtype, d, 35, 67, b=1, h=3, layout="columns" if turn % 2 else "shared"))


SHIPPED = [
    Case(BF16, 72, 130, 130, norm=True, rope=2, mask=True),
    Case(F16, 96, 130, 35, mask=True),
    Case(F16, 64, 128, 128),
    Case(F32, 80, 19, 19, norm=True, rope=3),
]


def targets_of(case: Case) -> list[str]:
    """Of the GPUs whose tiles differ in warps and stages alone, which the interpreter knows nothing of, the first."""
    found: dict[tuple[tuple[int, int], ...], str] = {}
    partial = case.mask or case.n % 128 != 0 or case.s % 128 != 0
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        tiles = (shipped(kernel, target, case.dtype, case.d, case.norm, partial) for kernel in KERNELS)
        found.setdefault(tuple((each.block_m, each.block_n) for each in tiles), target)
    return list(found.values())


@pytest.mark.parametrize(
    ("case", "target"),
    [
        pytest.param(case, target, id=f"{str(case.dtype)[6:]}-d{case.d}-{target}")
        for case in SHIPPED
        for target in targets_of(case)
    ],
)
def test_shipped_tiles(case: Case, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of a GPU, which are not the interpreter's own: their numbers of rows and of keys differ."""
    monkeypatch.setattr(import_module("mmdit_kernels.attention.launches"), "target_of", lambda device: target)
    check(case)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MMDIT_KERNELS_FULL_GRID"), reason="asked for by MMDIT_KERNELS_FULL_GRID=1")
@pytest.mark.parametrize("d", [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("features", ["plain", "norm-rope", "mask"])
def test_grid(dtype: torch.dtype, d: int, features: str) -> None:
    for n, s in ((1, 1), (7, 131), (131, 7), (300, 299)):
        if features == "norm-rope":
            check(Case(dtype, d, n, n, b=1, h=3, norm=True, rope=2))
        else:
            check(Case(dtype, d, n, s, b=3, h=1, mask=features == "mask", layout="columns" if d % 16 else "packed"))


def test_large_logits_that_float32_holds() -> None:
    """Logits from -1000 to 1000 with ties, exact in float32: no overflow, and the error stays that of small ones."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randint(0, 2, (1, 1, 70, 64), generator=generator).float() * 2 - 1 for _ in range(2))
    k[:, :, :8] = q[:, :, :8]
    k[:, :, 8:16] = -q[:, :, :8]
    v = torch.randn(1, 1, 70, 64, generator=generator)
    logits = 125 * (q @ k.transpose(2, 3)) / 8
    assert (logits.amin(), logits.amax()) == (-1000, 1000)
    check(Case(F32, 64, 70, 70), [125 * q, k, v])


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
def test_large_random_logits(dtype: torch.dtype) -> None:
    """Logits of ±1000 and more, which float32 would round by 1e-4."""
    case = Case(dtype, 72, 40, 70, h=3, magnitude=512.0)
    generator = torch.Generator().manual_seed(1)
    qkv = qkv_of(case, generator)
    exact = [x.double().requires_grad_() for x in qkv]
    ours, theirs = ([x.detach().clone().requires_grad_() for x in qkv] for _ in range(2))
    d_out = torch.randn(1, 3, 40, 72, generator=generator).to(dtype)
    outs = attention(*ours, backend="triton"), attention_torch(*theirs), attention_reference(*exact)
    assert outs[2].isfinite().all()
    for out in outs:
        out.backward(d_out.to(out.dtype))
    pairs = [outs, *((a.grad, b.grad, c.grad) for a, b, c in zip(ours, theirs, exact, strict=True))]
    for mine, other, truth in pairs:
        bound = FLOAT32_LIMIT if dtype == F32 else RATIO_LIMIT * relative_rms(other, truth)
        assert relative_rms(mine, truth) <= bound


def test_repeats_are_identical_and_padding_changes_nothing() -> None:
    """Twice the same bits; and keys masked out equal keys left out."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 40, generator=generator) for length in (33, 50, 50))
    mask = torch.arange(50)[None] < 37
    weight = torch.ones(40)
    grads = []
    for keys, values, key_mask in ((k, v, mask), (k, v, mask), (k[:, :, :37], v[:, :, :37], None)):
        leaves = [x.clone().requires_grad_() for x in (q, keys, values, weight)]
        out = attention(*leaves[:3], k_weight=leaves[3], key_mask=key_mask, scale=0.5, backend="triton")
        out.square().sum().backward()
        grads.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(first, second) for first, second in zip(grads[0], grads[1], strict=True))
    for masked, cut in zip(grads[0], grads[2], strict=True):
        short = masked[:, :, :37] if masked.shape != cut.shape else masked
        torch.testing.assert_close(short, cut, rtol=1e-5, atol=1e-5)
    assert (grads[0][2][:, :, 37:] == 0).all()
