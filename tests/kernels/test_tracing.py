"""torch.compile and autocast on the torch backend; the Triton path is in ``interpreted/test_library.py``."""

from __future__ import annotations

import pytest
import torch
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate
from torch import Tensor


def chain(x: Tensor, c: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """A block without its matrix products: every operator, on packed q, k, v."""
    b, t, d = x.shape
    y = layernorm_modulate(x, c, c)
    q, k, v = torch.cat((y, y, y), -1).view(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    y = attention(q, k, v, q_weight=table[0], rope=(table, table), key_mask=mask).transpose(1, 2).flatten(2)
    h, out = gated_residual_layernorm_modulate(x, y, c, c, c)
    return h + out


def test_a_compiled_chain_has_no_graph_break() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 5, 16), torch.randn(2, 16), torch.randn(5, 8), torch.rand(2, 5) > 0.2)
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (chain, compiled):
        leaves = [x.clone().requires_grad_() for x in inputs[:3]]
        out = function(*leaves, inputs[3])
        grads.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, traced in zip(*grads, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtypes_of_pytorch(dtype: torch.dtype) -> None:
    x, c = torch.ones(1, 2, 8), torch.ones(1, 8)
    q = torch.ones(1, 1, 2, 8)
    with torch.autocast("cpu", dtype):
        assert attention(q, q, q).dtype == torch.nn.functional.scaled_dot_product_attention(q, q, q).dtype == dtype
        assert attention(q.double(), q.double(), q.double()).dtype == torch.float64
        norm = torch.nn.functional.layer_norm(x, (8,))
        assert layernorm_modulate(x, c, c.to(dtype)).dtype == norm.dtype
        h, out = gated_residual_layernorm_modulate(x, x.to(dtype), c.to(dtype), c.to(dtype), c.to(dtype))
        assert (h.dtype, out.dtype) == ((x + c.to(dtype) * x.to(dtype)).dtype, norm.dtype)
        h, out = gated_residual_layernorm_modulate(x, x, c, c, c, out_dtype=dtype)
        assert (h.dtype, out.dtype, layernorm_modulate(x, c, c, out_dtype=dtype).dtype) == (x.dtype, dtype, dtype)
