"""Forward-mode differentiation of the kernels: outputs and tangents against float64, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from attention_cases import BF16, F16, F32, FLOAT32_LIMIT, Case, qkv_of
from jvp_cases import check_adaln_jvp, check_jvp
from mmdit_kernels import attention, attention_packed, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.adaln import jvp as adaln_jvp
from mmdit_kernels.adaln.reference import (
    gated_residual_layernorm_modulate_reference,
    gated_residual_layernorm_modulate_torch,
    layernorm_modulate_reference,
    layernorm_modulate_torch,
)
from mmdit_kernels.attention.jvp import attention_jvp
from mmdit_kernels.attention.reference import attention_reference
from mmdit_kernels.testing import relative_rms
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp

PLAIN = (layernorm_modulate, layernorm_modulate_torch, layernorm_modulate_reference)
GATED = (
    gated_residual_layernorm_modulate,
    gated_residual_layernorm_modulate_torch,
    gated_residual_layernorm_modulate_reference,
)
CASES = [
    Case(F32, 8, 1, 1, h=3),
    Case(F32, 72, 70, 70, b=3, norm=True, rope=2, mask=True),
    Case(F32, 64, 67, 33, layout="columns"),
    Case(F32, 96, 17, 130, mask=True, b=2, layout="shared"),
    Case(F32, 128, 35, 67),
    Case(BF16, 72, 70, 131),
    Case(BF16, 72, 70, 70, norm=True, rope=3, b=2),
    Case(BF16, 32, 33, 65, h=3, layout="columns"),
    Case(F16, 72, 67, 131, mask=True, b=2),
    Case(F16, 40, 45, 45, norm=True, rope=2, h=2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{str(case.dtype)[6:]}-d{case.d}-n{case.n}-s{case.s}")
def test_attention(case: Case) -> None:
    check_jvp(case)


@pytest.mark.parametrize("missing", ["q", "v", "qk", "kv"])
def test_attention_where_some_stand_still(missing: str) -> None:
    check_jvp(Case(F32, 24, 19, 35, h=2, layout="apart"), missing)


def test_attention_with_tangents_of_weights_and_tables() -> None:
    check_jvp(Case(F32, 40, 19, 19, norm=True, rope=3, b=2), vectors=True)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_common_part_of_the_slopes_cancels(dtype: torch.dtype) -> None:
    """All logits rise alike: the softmax does not see it, and neither may the rounding."""
    check_jvp(Case(dtype, 72, 35, 131, h=2), shift=10.0)


def test_large_logits() -> None:
    """Logits of ±1000, most rows with one large weight: PyTorch's tangent is off by 1e-5."""
    case = Case(F32, 72, 40, 70, h=3, magnitude=512.0)
    generator = torch.Generator().manual_seed(1)
    qkv = tuple(qkv_of(case, generator))
    tangents = tuple(torch.randn(x.shape, generator=generator) for x in qkv)
    outs = jvp(lambda q, k, v: attention(q, k, v, backend="triton"), qkv, tangents)
    wide = tuple(tuple(x.double() for x in tensors) for tensors in (qkv, tangents))
    for ours, exact in zip(outs, jvp(attention_reference, *wide), strict=True):
        assert relative_rms(ours, exact) <= FLOAT32_LIMIT


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", [Case(BF16, 72, 70, 70, norm=True, rope=2, mask=True), Case(F32, 80, 19, 35)], ids=str)
def test_shipped_tiles_of_attention(case: Case, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("mmdit_kernels.attention.launches"), "target_of", lambda device: target)
    check_jvp(case)


def adaln_tensors(b: int, t: int, d: int, dtypes: tuple[torch.dtype, ...], gated: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(b + t + d)
    x = torch.randn(b, t, d, generator=generator)
    y = torch.randn(b, d, t, generator=generator).transpose(1, 2)  # a copy has to be made
    gate, shift, scale = torch.randn(b, 3 * d, generator=generator).chunk(3, dim=1)
    tensors = [x, y, gate, shift, scale] if gated else [x, shift, scale]
    return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=False)]


@pytest.mark.parametrize(
    ("b", "t", "d", "dtypes", "gated", "missing"),
    [
        (3, 37, 72, (F32,) * 5, False, ()),
        (2, 17, 1152, (F32,) * 5, True, ()),
        (2, 5, 40, (F32,) * 5, True, (0, 2, 3)),
        (2, 5, 40, (F32,) * 5, True, (1, 4)),
        (2, 5, 24, (F32,) * 5, False, (0,)),
        (3, 5, 1000, (BF16,) * 5, True, ()),
        (1, 70, 384, (BF16,) * 5, False, ()),
        (2, 17, 768, (F16,) * 5, True, ()),
        (2, 7, 264, (F32, BF16, BF16, F32, BF16), True, ()),
    ],
    ids=str,
)
def test_adaln(b: int, t: int, d: int, dtypes: tuple[torch.dtype, ...], gated: bool, missing: tuple[int, ...]) -> None:
    check_adaln_jvp(GATED if gated else PLAIN, adaln_tensors(b, t, d, dtypes, gated), missing)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize(("t", "d", "dtype"), [(7, 72, F32), (2, 1152, BF16)])
def test_shipped_tiles_of_adaln(
    t: int, d: int, dtype: torch.dtype, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaln_jvp, "target_of", lambda device: target)
    check_adaln_jvp(GATED, adaln_tensors(2, t, d, (dtype,) * 5, True))


B, H, N, D = 1, 2, 5, 8


def chain(x: Tensor, c: Tensor, table: Tensor, backend: str = "triton", rope: Any = None) -> Tensor:
    """A block without its matrix products."""
    y = layernorm_modulate(x, c, c, backend=backend)
    q, k, v = torch.cat((y, y, y), -1).view(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
    rope = (table.detach().cos(), table.detach().sin()) if rope is None else rope
    out = attention(q, k, v, q_weight=table[0], k_weight=table[1], rope=rope, backend=backend)
    h, out = gated_residual_layernorm_modulate(x, out.transpose(1, 2).flatten(2), c, c, c, backend=backend)
    return h + out


def chain_inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, N, H * D), torch.randn(2, H * D), torch.randn(N, D)]


def test_dual_tensors_give_what_jvp_gives() -> None:
    """And a call in which nothing moves runs as it always does."""
    x, c, table = chain_inputs()
    out, slope = jvp(lambda x: chain(x, c, table), (x,), (c[:, None].expand_as(x),))
    with forward_ad.dual_level():
        dual = chain(forward_ad.make_dual(x, c[:, None].expand_as(x)), c, table)
        still = chain(x, c, table)
        assert torch.equal(forward_ad.unpack_dual(dual).primal, out)
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, slope)
        assert forward_ad.unpack_dual(still).tangent is None
    torch.testing.assert_close(still, out)


def flow_loss(
    x: Tensor, c: Tensor, table: Tensor, backend: str = "triton", learned: bool = False
) -> tuple[Tensor, Tensor]:
    """MeanFlow's loss (arXiv 2505.13447, algorithm 1): the tangent is part of a target that has no gradient."""
    rope = (table.cos(), table.sin()) if learned else None
    u, slope = jvp(lambda x, c: chain(x, c, table, backend, rope), (x, c), (x.detach(), torch.ones_like(c)))
    return (u - (x - 0.3 * slope).detach()).square().sum(), slope.detach()


def test_reverse_mode_through_the_primal() -> None:
    """The gradient is the torch backend's, in x, c and the norm weights, eagerly and in one compiled graph."""
    results = []
    compiled = torch.compile(flow_loss, backend="aot_eager", fullgraph=True)
    for function, backend in ((flow_loss, "triton"), (compiled, "triton"), (flow_loss, "torch")):
        leaves = [x.clone().requires_grad_() for x in chain_inputs()]
        loss, slope = function(*leaves, backend)
        results.append((loss, slope, *torch.autograd.grad(loss, leaves)))
    for ours, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_gradients_of_rope_tables() -> None:
    """Made before jvp they have one, as without jvp; made inside, where nobody sees that they need it, it is refused."""
    results = []
    for backend in ("triton", "torch"):
        leaves = [x.clone().requires_grad_() for x in chain_inputs()]
        loss, _ = flow_loss(*leaves, backend, learned=True)
        results.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    q, table = torch.randn(1, 1, 3, 8), torch.randn(3, 8, requires_grad=True)
    for moving in (0, 1):

        def function(x: Tensor, moving: int = moving) -> Tensor:
            y = x if moving else q
            return x + attention(y, y, y, rope=(table.cos(), table.sin()), backend="triton")

        with pytest.raises(NotImplementedError, match="no gradient of rope tables that were computed inside"):
            jvp(function, (q,), (q,))[0].sum().backward()


def test_the_gradient_of_a_tangent_is_refused() -> None:
    q, x, c = torch.randn(1, 1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 8)
    for function, primal in (
        (lambda q: attention(q, q, q, backend="triton"), q),
        (lambda x: layernorm_modulate(x, c, c, backend="triton"), x),
        (lambda x: gated_residual_layernorm_modulate(x, x, c, c, c, backend="triton")[1], x),
    ):
        leaf = primal.clone().requires_grad_()
        out, slope = jvp(function, (leaf,), (primal,))
        torch.autograd.grad(out.sum(), leaf)
        with pytest.raises(NotImplementedError, match=r"no gradient of its tangent, only of its output: detach"):
            jvp(function, (leaf,), (primal,))[1].sum().backward()
        assert slope.requires_grad


def test_other_transforms_of_a_jvp_are_refused() -> None:
    """There the tangent lies where it cannot be seen, and would be dropped."""
    q = torch.randn(1, 1, 3, 8)

    def function(q: Tensor) -> Tensor:
        return attention(q, q, q, backend="triton")

    def slope(q: Tensor) -> Tensor:
        return jvp(function, (q,), (q,))[1]

    calls: list[Any] = [
        lambda: jvp(slope, (q,), (q,)),
        lambda: jvp(torch.func.vmap(function), (q[None],), (q[None],)),
    ]
    for call, name in zip(calls, ("jvp", "vmap"), strict=True):
        with pytest.raises(NotImplementedError, match=rf"through torch.func.{name} inside another"):
            call()
    grad = torch.func.grad(lambda q: function(q).sum())
    for call in (lambda: grad(q), lambda: jvp(grad, (q,), (q,)), lambda: torch.func.grad(lambda q: slope(q).sum())(q)):
        with pytest.raises(ValueError, match=r"Triton backend: torch.func.grad, vjp and jacrev do not see through"):
            call()


OPERATORS = {
    "attention": (lambda q: attention(q, q, q, backend="triton"), (1, 1, 3, 8)),
    "attention_packed": (lambda qkv: attention_packed(qkv, backend="triton"), (1, 3, 3, 1, 8)),
    "layernorm_modulate": (lambda x: layernorm_modulate(x, x[:, 0], x[:, 1], backend="triton"), (1, 3, 8)),
    "gated_residual_layernorm_modulate": (
        lambda x: gated_residual_layernorm_modulate(x, x, x[:, 0], x[:, 1], x[:, 2], backend="triton")[1],
        (1, 3, 8),
    ),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_the_tangent_of_a_gradient_is_refused(op: str) -> None:
    """Forward over reverse with dual tensors, where a moving gradient would lose its tangent; still ones go through."""
    function, shape = OPERATORS[op]
    leaf = torch.randn(shape, requires_grad=True)

    def refuse(run: Callable[[], object]) -> None:
        with pytest.raises(NotImplementedError, match="backend has no forward-mode derivative of its gradient"):
            run()

    plain = function(leaf)
    with forward_ad.dual_level():
        for loss in (torch.sum, lambda out: out.square().sum()):
            out = function(forward_ad.make_dual(leaf, torch.ones(shape)))
            refuse(lambda: torch.autograd.grad(loss(out), leaf))  # noqa: B023
        still = torch.ones_like(plain)
        refuse(lambda: torch.autograd.grad(plain, leaf, forward_ad.make_dual(still, still), retain_graph=True))
        (inside,) = torch.autograd.grad(plain, leaf, still, retain_graph=True)
    assert torch.equal(inside, torch.autograd.grad(plain, leaf, still)[0])


def test_without_a_tangent_pytorch_norms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For compilers that need float32's norm ahead of the tangent: a plain call leaves it to the kernels."""
    module = import_module("mmdit_kernels.attention.jvp")
    calls = []
    norm = module.norm_and_rotate
    monkeypatch.setattr(module, "old_compiler", lambda: True)
    monkeypatch.setattr(module, "norm_and_rotate", lambda *arguments: calls.append(1) or norm(*arguments))
    q, weight = torch.randn(1, 1, 3, 8), torch.rand(8)

    def function(q: Tensor, backend: str = "triton") -> Tensor:
        return attention(q, q, q, q_weight=weight, backend=backend)

    out = function(q)
    assert calls == []
    results = jvp(function, (q,), (q,))
    assert calls == [1]
    torch.testing.assert_close(results, jvp(lambda q: function(q, "torch"), (q,), (q,)))
    torch.testing.assert_close(results[0], out)


def test_repeats_are_identical_and_the_output_is_that_of_the_forward() -> None:
    case = Case(BF16, 72, 70, 131, b=2, mask=True)
    generator = torch.Generator().manual_seed(0)
    qkv = tuple(qkv_of(case, generator))
    tangents = tuple(torch.randn(x.shape, generator=generator).to(BF16) for x in qkv)
    mask = torch.rand(2, 131, generator=generator) > 0.3

    def function(*qkv: Tensor) -> Tensor:
        return attention(*qkv, key_mask=mask, backend="triton")

    (out, slope), (again, repeat) = (jvp(function, qkv, tangents) for _ in range(2))
    assert torch.equal(out, again)
    assert torch.equal(slope, repeat)
    assert torch.equal(out, function(*qkv))
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("full", [False, True])
def test_opcheck_of_attention(full: bool) -> None:
    q, k, v = (x.detach().requires_grad_() for x in torch.randn(B, N, 3, H, D).permute(2, 0, 3, 1, 4))
    arguments: tuple[Any, ...] = (q, k, v, q.detach(), None, None, None, None, None, None, None, 0.3)
    if full:
        weights = [torch.ones(D, requires_grad=True) for _ in range(2)]
        mask = torch.tensor([[True, False, True, True, False]])
        tangents = (x.detach() for x in (v, q, k))
        arguments = (q, k, v, *tangents, *weights, torch.rand(N, D), torch.rand(B, N, D), mask, 0.3)
    torch.library.opcheck(attention_jvp, arguments, test_utils=("test_schema", "test_faketensor"))


def test_opcheck_of_adaln() -> None:
    x, y = (torch.randn(2, 3, 6) for _ in range(2))
    gate, shift, scale = torch.randn(2, 18).chunk(3, 1)
    checks = ("test_schema", "test_faketensor")
    arguments = (x, shift, scale, y, None, gate, 1e-6, BF16)
    torch.library.opcheck(adaln_jvp.layernorm_modulate_jvp, arguments, test_utils=checks)
    arguments = (x, y, gate, shift, scale, y, x, None, gate, None, 1e-6, F32, BF16)
    torch.library.opcheck(adaln_jvp.gated_residual_layernorm_modulate_jvp, arguments, test_utils=checks)


def test_autocast() -> None:
    """q, k and v are rounded with their tangents, and the results have the dtypes of the torch backend."""
    q, x, c = torch.randn(1, 2, 5, 8), torch.randn(1, 3, 8), torch.randn(1, 8)

    def function(q: Tensor, x: Tensor, backend: str) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", BF16):
            return (
                attention(q, q, q, backend=backend),
                layernorm_modulate(x, c, c, backend=backend, out_dtype=BF16),
                *gated_residual_layernorm_modulate(x, x.to(BF16), c.to(BF16), c, c, backend=backend),
            )

    results = [jvp(lambda q, x: function(q, x, backend), (q, x), (q, x)) for backend in ("triton", "torch")]  # noqa: B023
    for ours, theirs in zip(*(outs + slopes for outs, slopes in results), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
