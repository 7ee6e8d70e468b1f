"""Norm and rotation ahead of the attention kernels: the same output, gradients against float64, and when it is done."""

from __future__ import annotations

import pytest
import torch
from attention_cases import BF16, F16, F32, Case, check
from mmdit_kernels import attention_packed
from mmdit_kernels.attention import rotation
from mmdit_kernels.attention.launches import Inputs
from mmdit_kernels.testing import relative_rms


@pytest.fixture
def rotated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let it be done at every length; return the shapes that were rotated."""
    shapes: list[tuple[int, ...]] = []
    launch = rotation.rotation_launch
    monkeypatch.setattr(rotation, "SHORTEST", 1)
    monkeypatch.setattr(rotation, "rotation_launch", lambda x, *a: shapes.append(tuple(x.shape)) or launch(x, *a))
    return shapes


@pytest.mark.parametrize(
    "case",
    [
        Case(BF16, 72, 33, 33, b=2, norm=True, rope=3),
        Case(F16, 24, 5, 33, h=2, norm=True, mask=True),
        Case(BF16, 16, 32, 32, h=2, rope=2, layout="columns"),
    ],
    ids=str,
)
def test_gradients(case: Case, rotated: list[tuple[int, ...]]) -> None:
    check(case)
    sides = [(case.b, case.h, n, case.d) for n in (case.n, case.s)]
    assert rotated == 2 * sides  # in the forward, and again in the backward, which keeps nothing


def test_the_output_has_the_same_bits_and_the_packed_gradient_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 20, 3, 2, 24, generator=generator).bfloat16().requires_grad_()
    weight = (1 + 0.3 * torch.randn(24, generator=generator)).requires_grad_()
    options = {"q_weight": weight, "k_weight": weight, "rope": tuple(torch.randn(2, 20, 24, generator=generator))}
    results = []
    for shortest in (21, 20):
        monkeypatch.setattr(rotation, "SHORTEST", shortest)
        out = attention_packed(qkv, **options, backend="triton")
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (qkv, weight))))
    (out, *inside), (ahead, d_qkv, d_weight) = results
    assert torch.equal(out, ahead)
    assert d_qkv.is_contiguous()
    for ours, theirs in zip((d_qkv, d_weight), inside, strict=True):
        assert relative_rms(ours, theirs) < 1e-2  # the gradient of what was rotated is rounded in between


def test_when_it_is_done() -> None:
    def answer(dtype: torch.dtype, queries: int, keys: int, transforms: bool = True) -> bool:
        q, k = (torch.empty(1, 1, n, 8, dtype=dtype, device="meta") for n in (queries, keys))
        weight = torch.ones(8) if transforms else None
        return rotation.rotates_first(Inputs(q, k, k, weight, None, None, None, None, 1.0))

    assert answer(BF16, 1024, 1024)
    assert answer(F16, 512, 512)
    assert not answer(F16, 512, 77)  # a prompt's few keys
    assert not answer(BF16, 256, 256)
    assert not answer(F32, 1024, 1024)
    assert not answer(BF16, 1024, 1024, transforms=False)
