"""Forward-mode differentiation on the torch backend; the Triton kernels are in ``interpreted/test_jvp.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.attention.reference import attention_reference
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def arguments_of(op: Callable[..., Any]) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    if op is attention:  # q, k, v, both weights, cos, sin
        return *(draw(2, 3, 7, 8) for _ in range(3)), draw(8), draw(8), draw(7, 8), draw(2, 7, 8)
    vectors = [draw(2, 6) for _ in range(3)]
    if op is layernorm_modulate:
        return draw(2, 5, 6), *vectors[:2]
    return draw(2, 5, 6), draw(2, 5, 6), *vectors


def call(op: Callable[..., Any], *arguments: Tensor) -> Any:
    if op not in (attention, attention_reference):
        return op(*arguments)
    q, k, v, q_weight, k_weight, cos, sin = arguments
    mask = torch.tensor([[True, False, True, True, True, False, True], [False] * 7])
    return op(q, k, v, q_weight=q_weight, k_weight=k_weight, rope=(cos, sin), key_mask=mask, scale=0.3)


OPERATORS = [attention, layernorm_modulate, gated_residual_layernorm_modulate]


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_jvp_is_the_slope_along_the_tangent(op: Callable[..., Any]) -> None:
    """Central differences in float64, every argument moving; a dual tensor gives the same."""
    primals = arguments_of(op)
    tangents = tuple(draw(*x.shape) for x in primals)

    def moved(step: float) -> Any:
        return call(op, *(x + step * t for x, t in zip(primals, tangents, strict=True)))

    outs, slopes = jvp(lambda *x: call(op, *x), primals, tangents)
    with forward_ad.dual_level():
        dual = call(op, *map(forward_ad.make_dual, primals, tangents))
        duals = [forward_ad.unpack_dual(x) for x in (dual if isinstance(dual, tuple) else (dual,))]
    results = [(x,) if isinstance(x, Tensor) else x for x in (outs, slopes, moved(1e-6), moved(-1e-6), moved(0.0))]
    for out, slope, ahead, behind, here, pair in zip(*results, duals, strict=True):
        torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(out, here)
        assert torch.equal(pair.primal, out)
        torch.testing.assert_close(pair.tangent, slope)


def test_attention_has_the_tangent_of_the_reference_through_other_transforms() -> None:
    """Forward over reverse, and forward over forward."""
    primals = arguments_of(attention)
    q, tangent = primals[0], draw(*primals[0].shape)
    results = []
    for op in (attention, attention_reference):

        def loss(q: Tensor, op: Callable[..., Any] = op) -> Tensor:
            return call(op, q, *primals[1:]).square().sum()

        def slope(q: Tensor, loss: Callable[[Tensor], Tensor] = loss) -> Tensor:
            return jvp(loss, (q,), (tangent,))[1]

        results.append((jvp(torch.func.grad(loss), (q,), (tangent,))[1], jvp(slope, (q,), (tangent,))[1]))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact)


def test_a_compiled_jvp_is_one_graph() -> None:
    primals = [x.float() for x in arguments_of(gated_residual_layernorm_modulate)]
    weight = torch.ones(3)

    def chain(x: Tensor, y: Tensor) -> Tensor:
        h, out = gated_residual_layernorm_modulate(x, y, *primals[2:])
        q = out.unflatten(-1, (2, 3)).transpose(1, 2)
        return h + attention(q, q, q, q_weight=weight).transpose(1, 2).flatten(2)

    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(chain, (x, y), (y, x))

    for eager, traced in zip(
        both(*primals[:2]), torch.compile(both, backend="aot_eager", fullgraph=True)(*primals[:2]), strict=True
    ):
        torch.testing.assert_close(traced, eager)
