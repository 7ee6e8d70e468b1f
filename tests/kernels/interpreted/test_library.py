"""The operators as torch.library sees them: schema, fake implementations, autograd, tracing, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.adaln import registration as adaln
from mmdit_kernels.attention import registration
from mmdit_kernels.dispatch import status
from torch import Tensor

B, H, N, D = 1, 2, 5, 8


def packed() -> Tensor:
    return torch.randn(B, N, 3, H, D).permute(2, 0, 3, 1, 4)


def attention_arguments(full: bool) -> tuple[Any, ...]:
    q, k, v = (x.detach().requires_grad_() for x in packed())
    if not full:
        return q, k, v, None, None, None, None, None, 0.3
    weights = [torch.ones(D, requires_grad=True) for _ in range(2)]
    mask = torch.tensor([[True, False, True, True, False]])
    return q, k, v, *weights, torch.rand(N, D), torch.rand(B, N, D), mask, 0.3


@pytest.mark.parametrize("full", [False, True])
def test_opcheck_of_attention(full: bool) -> None:
    arguments = attention_arguments(full)
    torch.library.opcheck(registration.attention_forward, arguments)
    with torch.no_grad():
        out, stats = registration.attention_forward(*arguments)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    torch.library.opcheck(
        registration.attention_backward, (torch.randn_like(out), *detached[:8], out, stats, detached[8])
    )


def test_opcheck_of_adaln() -> None:
    x, y = (torch.randn(2, 3, 6, requires_grad=True) for _ in range(2))
    gate, shift, scale = (chunk.detach().requires_grad_() for chunk in torch.randn(2, 18).chunk(3, 1))
    torch.library.opcheck(adaln.layernorm_modulate_forward, (x, shift, scale, 1e-6, torch.bfloat16))
    half, single = torch.bfloat16, torch.float32
    arguments = (x, y, gate, shift, scale, 1e-6, single, half)
    torch.library.opcheck(adaln.gated_residual_layernorm_modulate_forward, arguments)
    x, y, gate, scale = (tensor.detach() for tensor in (x, y, gate, scale))
    stats = torch.rand(2, 2, 3)
    torch.library.opcheck(adaln.layernorm_modulate_backward, (y, x, scale, stats))
    for d_h in (None, y):
        arguments = (d_h, x.to(half), x, y, gate, scale, stats, single)
        torch.library.opcheck(adaln.gated_residual_layernorm_modulate_backward, arguments)


def chain(x: Tensor, c: Tensor, table: Tensor) -> Tensor:
    """A block without its matrix products; q, k and v are views of one tensor, and the heads are merged by a view."""
    b, t, d = x.shape
    y = layernorm_modulate(x, c, c, backend="triton")
    q, k, v = torch.cat((y, y, y), -1).view(b, t, 3, H, d // H).permute(2, 0, 3, 1, 4)
    tables = (table.cos(), table.sin())
    out = attention(q, k, v, q_weight=table[0], k_weight=table[1], rope=tables, backend="triton")
    out = out.transpose(1, 2)
    assert out.is_contiguous()
    h, out = gated_residual_layernorm_modulate(x, out.flatten(2), c, c, c, backend="triton")
    return h + out


def test_a_compiled_chain_has_no_graph_break_and_the_same_bits() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, N, H * D), torch.randn(2, H * D), torch.randn(N, D))
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (chain, compiled):
        x, c = (tensor.clone().requires_grad_() for tensor in inputs[:2])
        out = function(x, c, inputs[2])
        grads.append((out, *torch.autograd.grad(out.square().sum(), (x, c))))
    for eager, traced in zip(*grads, strict=True):
        torch.testing.assert_close(traced, eager)


def test_rope_tables_have_gradients_too() -> None:
    torch.manual_seed(0)
    grads = []
    inputs = [*packed(), torch.rand(D), torch.rand(N, D), torch.rand(B, N, D)]
    for backend in ("triton", "torch"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        q, k, v, weight, *tables = leaves
        out = attention(q, k, v, q_weight=weight, rope=tuple(tables), backend=backend)
        grads.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtypes_of_the_torch_backend(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().requires_grad_() for x in packed())
    x, c = torch.randn(1, 3, 8, requires_grad=True), torch.randn(1, 8)
    outs = []
    for backend in ("triton", "torch"):
        with torch.autocast("cpu", dtype):
            out = attention(q, k, v, backend=backend)
            low = x.to(dtype)
            h, normed = gated_residual_layernorm_modulate(x, low, c.to(dtype), c.to(dtype), c, backend=backend)
            alone = layernorm_modulate(low, c.to(dtype), c.to(dtype), backend=backend)
            asked = layernorm_modulate(x, c, c, backend=backend, out_dtype=dtype)
            assert asked.dtype == dtype
        grads = torch.autograd.grad(sum(y.float().sum() for y in (out, normed, asked)), (q, k, v, x))
        outs.append((out, h, normed, alone, asked, *grads))
    for ours, theirs in zip(*outs, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=5e-2, rtol=5e-2)


def test_status_says_that_the_interpreter_is_on() -> None:
    assert status()["interpreter"] == "on"
