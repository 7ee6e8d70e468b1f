"""Tensors whose parts lie more than 2^31 elements apart: address space is reserved, a few pages of it are used."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch
from mmdit_kernels import attention, gated_residual_layernorm_modulate
from mmdit_kernels.adaln.reference import gated_residual_layernorm_modulate_reference
from mmdit_kernels.attention.launches import MAXIMUM_STRIDE
from mmdit_kernels.attention.reference import attention_reference
from torch import Tensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is reserved in Linux's way")
FAR = 2**31 + 64  # elements
MAP_NORESERVE = 0x4000


def sparse(values: Tensor, strides: tuple[int, ...], start: int = 0) -> Tensor:
    """Return the values, in bfloat16, at these strides."""
    elements = start + 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.bfloat16)
    return memory.as_strided(values.shape, strides, start).copy_(values).requires_grad_()


def assert_near(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    for mine, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, atol=3e-2, rtol=3e-2)


ROW = MAXIMUM_STRIDE - 8  # 513 of these are over 2^31


@pytest.mark.parametrize(
    ("b", "h", "n", "s", "strides"),
    [
        (2, 1, 3, 3, (FAR, 8, 8, 1)),
        (1, 2, 3, 3, (8, FAR, 8, 1)),
        (1, 1, 513, 3, (8, 8, ROW, 1)),
        (1, 1, 3, 513, (8, 8, ROW, 1)),
    ],
    ids=["batch", "head", "query", "key"],
)
def test_attention(b: int, h: int, n: int, s: int, strides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, d_out = (torch.randn(b, h, rows, 8, generator=generator).bfloat16() for rows in (n, s, s, n))
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    out = attention_reference(*exact)
    exact_results = (out, *torch.autograd.grad(out, exact, d_out.double()))
    leaves = [sparse(x, strides) for x in (q, k, v)]
    out = attention(*leaves, backend="triton")
    far_d_out = sparse(d_out, strides).detach()
    assert_near((out, *torch.autograd.grad(out, leaves, far_d_out)), exact_results)


@pytest.mark.parametrize("strides", [(FAR, 16, 1), (32, FAR, 1)], ids=["batch", "token"])
def test_adaln(strides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, d_h, d_out = (torch.randn(2, 2, 16, generator=generator).bfloat16() for _ in range(4))
    vectors = [torch.randn(2, 16, generator=generator).bfloat16() for _ in range(3)]
    exact = [tensor.double().requires_grad_() for tensor in (x, y, *vectors)]
    outs = gated_residual_layernorm_modulate_reference(*exact)
    exact_results = (*outs, *torch.autograd.grad(outs, exact, [d_h.double(), d_out.double()]))
    leaves = [*(sparse(tensor, strides) for tensor in (x, y)), *(sparse(tensor, (FAR, 1)) for tensor in vectors)]
    outs = gated_residual_layernorm_modulate(*leaves, backend="triton")
    far = [sparse(tensor, strides).detach() for tensor in (d_h, d_out)]
    assert_near((*outs, *torch.autograd.grad(outs, leaves, far)), exact_results)
