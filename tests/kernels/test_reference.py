"""The torch backend and the references against closed forms, each other, and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.adaln.reference import (
    gated_residual_layernorm_modulate_reference,
    layernorm_modulate_reference,
)
from mmdit_kernels.attention.reference import apply_rope, attention_reference
from torch import Tensor


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("function", [attention, attention_reference])
def test_attention_in_closed_form(function: object) -> None:
    assert callable(function)
    q, k, v = (draw(2, 3, n, 8).detach() for n in (4, 5, 5))
    # One key: its value. Equal keys: the mean. A scale that separates the logits: the value of the largest.
    torch.testing.assert_close(function(q, k[:, :, :1], v[:, :, :1]), v[:, :, :1].expand_as(q))
    torch.testing.assert_close(function(q, k[:, :, :1].expand_as(k), v), v.mean(2, keepdim=True).expand_as(q))
    best = (q @ k.transpose(2, 3)).argmax(-1)
    torch.testing.assert_close(function(q, k, v, scale=1e4), v.gather(2, best[..., None].expand(-1, -1, -1, 8)))


@pytest.mark.parametrize("function", [attention, attention_reference])
def test_a_key_mask_is_the_absence_of_keys(function: object) -> None:
    assert callable(function)
    q, k, v = (draw(3, 2, n, 8) for n in (4, 6, 6))
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False], [False] * 6])
    out = function(q, k, v, key_mask=mask)
    keep = mask[1].nonzero()[:, 0]
    torch.testing.assert_close(out[1:2], function(q[1:2], k[1:2, :, keep], v[1:2, :, keep]))
    assert (out[2] == 0).all()
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(grad.isfinite().all() and (grad[2] == 0).all() for grad in grads)


def test_rope_turns_interleaved_pairs() -> None:
    """At (2i, 2i + 1), position n turns by its angle: a complex product; logits depend on the difference alone."""
    x = draw(1, 1, 4, 6).detach()
    angles = torch.outer(torch.arange(4.0, dtype=torch.float64), torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64))
    tables = tuple(table.repeat_interleave(2, -1) for table in (angles.cos(), angles.sin()))
    expected = torch.view_as_complex(x.unflatten(-1, (3, 2))) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(apply_rope(x, tables), torch.view_as_real(expected).flatten(-2))
    q, k = (apply_rope(x[:, :, :1].expand_as(x), tables) for _ in range(2))
    logits = (q @ k.transpose(2, 3))[0, 0]
    torch.testing.assert_close(logits.diagonal(1), logits[0, 1].expand(3))


def test_qk_norm_bounds_the_logits() -> None:
    q, k, v = (draw(1, 1, 3, 8) * 1e4 for _ in range(3))
    unit = torch.ones(8, dtype=torch.float64)
    normed = [x / x.square().mean(-1, keepdim=True).sqrt() for x in (q, k)]
    out = attention(q, k, v, q_weight=2 * unit, k_weight=unit)
    torch.testing.assert_close(out, attention(2 * normed[0], normed[1], v))


@pytest.mark.parametrize("masked", [False, True])
def test_backend_and_reference_agree_on_every_gradient(masked: bool) -> None:
    n = 7
    inputs = [*(draw(2, 3, n, 8) for _ in range(3)), draw(8), draw(8), draw(2, n, 8), draw(n, 8)]
    mask = torch.tensor([[True, False, True, True, True, False, True], [False] * 7]) if masked else None
    grads = []
    for function in (attention, attention_reference):
        q, k, v, q_weight, k_weight, cos, sin = inputs
        out = function(q, k, v, q_weight=q_weight, k_weight=k_weight, rope=(cos, sin), key_mask=mask, scale=0.3)
        grads.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for ours, reference in zip(*grads, strict=True):
        torch.testing.assert_close(ours, reference)


def test_gradcheck_of_attention() -> None:
    mask = torch.tensor([[True, True, False]])

    def function(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return attention(q, k, v, q_weight=a, k_weight=b, rope=(cos, sin), key_mask=mask)

    inputs = (*(draw(1, 2, 3, 4) for _ in range(3)), draw(4), draw(4), draw(3, 4), draw(3, 4))
    assert torch.autograd.gradcheck(function, inputs)


def test_gradcheck_of_adaln() -> None:
    x, y, *vectors = draw(2, 3, 4), draw(2, 3, 4), draw(2, 4), draw(2, 4), draw(2, 4)
    assert torch.autograd.gradcheck(layernorm_modulate, (x, *vectors[:2]))
    assert torch.autograd.gradcheck(gated_residual_layernorm_modulate, (x, y, *vectors))


def test_adaln_in_closed_form() -> None:
    x = torch.tensor([[[1.0, 3.0], [-5.0, 5.0]]], dtype=torch.float64)
    one = torch.ones(1, 2, dtype=torch.float64)
    signs = torch.tensor([[[-1.0, 1.0]] * 2], dtype=torch.float64)
    deviations = torch.tensor([1.0, 25.0], dtype=torch.float64)[None, :, None]
    for eps in (1e-6, 1.0):
        scaled = signs * torch.sqrt(deviations / (deviations + eps))
        torch.testing.assert_close(layernorm_modulate(x, 7 * one, 2 * one, eps=eps), 3 * scaled + 7)
    h, out = gated_residual_layernorm_modulate(x, x, -one, one, one)
    assert (h == 0).all()
    assert (out == 1).all()


def test_adaln_backend_and_reference_agree() -> None:
    x, y, gate, shift, scale = draw(2, 5, 6), draw(2, 5, 6), draw(2, 6), draw(2, 6), draw(2, 6)
    ours = gated_residual_layernorm_modulate(x, y, gate, shift, scale)
    torch.testing.assert_close(ours, gated_residual_layernorm_modulate_reference(x, y, gate, shift, scale, 1e-6))
    torch.testing.assert_close(layernorm_modulate(x, shift, scale), layernorm_modulate_reference(x, shift, scale, 1e-6))


def test_no_key_or_query_at_all() -> None:
    """Sizes of zero go through: an empty result, and zeros where there is nothing to attend to."""
    q = torch.ones(1, 2, 3, 8)
    assert attention(q[:, :, :0], q, q).shape == (1, 2, 0, 8)
    assert attention(q[:0], q[:0], q[:0]).shape == (0, 2, 3, 8)
    assert math.prod(layernorm_modulate(torch.ones(2, 0, 4), torch.ones(2, 4), torch.ones(2, 4)).shape) == 0
