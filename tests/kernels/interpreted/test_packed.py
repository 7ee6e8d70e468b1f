"""attention of a packed projection: the bits of ``attention`` on its three views, and a gradient that nothing copies."""

from __future__ import annotations

import pytest
import torch
from mmdit_kernels import attention, attention_packed
from mmdit_kernels.attention import packed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

B, N, H, D = 2, 35, 3, 24


class Counter(TorchDispatchMode):
    """Counts operators of PyTorch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def options_of(full: bool, b: int = B, n: int = N, d: int = D) -> dict[str, object]:
    if not full:
        return {}
    generator = torch.Generator().manual_seed(1)
    weights = [1 + 0.3 * torch.randn(d, generator=generator) for _ in range(2)]
    tables = tuple(torch.randn(n, d, generator=generator) for _ in range(2))
    mask = torch.rand(b, n, generator=generator) > 0.3
    mask[: b - 1] = False
    return {"q_weight": weights[0], "k_weight": weights[1], "rope": tables, "key_mask": mask, "scale": 0.3}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_attention_of_the_views(dtype: torch.dtype, full: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(B, N, 3, H, D, generator=generator).to(dtype)
    d_out = torch.randn(B, H, N, D, generator=generator).to(dtype)
    options = options_of(full)
    results = []
    for function in (
        lambda x, **more: attention_packed(x, **more, backend="triton"),
        lambda x, **more: attention(*x.permute(2, 0, 3, 1, 4), **more, backend="triton"),
    ):
        leaves = [values.clone().requires_grad_()]
        more = dict(options)
        for name in ("q_weight", "k_weight") if full else ():
            leaves.append(options[name].clone().requires_grad_())  # type: ignore[attr-defined]
            more[name] = leaves[-1]
        out = function(leaves[0], **more)
        results.append((out, *torch.autograd.grad(out, leaves, d_out)))
    assert results[0][1].is_contiguous()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def attend(x: Tensor, projection: nn.Linear, backend: str, is_packed: bool) -> Tensor:
    qkv = projection(x).view(B, N, 3, H, D)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = attention_packed(qkv, backend=backend) if is_packed else attention(q, k, v, backend=backend)
    return y.transpose(1, 2).flatten(2)


def test_the_backward_stacks_and_copies_nothing() -> None:
    """Three views cost a stack and a copy of the three gradients; the packed operator has neither."""
    projection = nn.Linear(H * D, 3 * H * D)
    counts = []
    for is_packed in (False, True):
        out = attend(torch.randn(B, N, H * D, requires_grad=True), projection, "triton", is_packed)
        d_out = torch.randn_like(out)
        with Counter() as counter:
            out.backward(d_out)
        counts.append(counter.counts)
    assert counts[0]["stack"] == 1
    assert counts[0]["clone"] >= 1
    assert counts[1]["attention_packed_backward"] == 1
    assert not {"stack", "cat", "clone", "copy_", "_to_copy", "contiguous"} & set(counts[1])


@pytest.mark.parametrize("full", [False, True])
def test_opcheck(full: bool) -> None:
    qkv = torch.randn(1, 5, 3, 2, 8, requires_grad=True)
    options = options_of(full, 1, 5, 8)
    cos, sin = options.get("rope", (None, None))  # type: ignore[misc]
    arguments = (qkv, options.get("q_weight"), options.get("k_weight"), cos, sin, options.get("key_mask"), 0.3)
    torch.library.opcheck(packed.attention_packed_forward, arguments)
    with torch.no_grad():
        out, stats = packed.attention_packed_forward(*arguments)
    detached = [qkv.detach(), *arguments[1:6]]
    torch.library.opcheck(packed.attention_packed_backward, (torch.randn_like(out), *detached, out, stats, 0.3))


def test_rope_tables_have_gradients_and_autocast_casts() -> None:
    qkv, cos, sin = torch.randn(B, N, 3, H, D), torch.rand(N, D), torch.rand(B, N, D)
    grads = []
    for backend in ("triton", "torch"):
        leaves = [x.clone().requires_grad_() for x in (qkv, cos, sin)]
        out = attention_packed(leaves[0], rope=(leaves[1], leaves[2]), backend=backend)
        grads.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_packed(qkv, backend="triton").dtype == torch.bfloat16


def test_one_graph() -> None:
    projection = nn.Linear(H * D, 3 * H * D)
    x = torch.randn(B, N, H * D)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (attend, compiled):
        leaf = x.clone().requires_grad_()
        out = function(leaf, projection, "triton", True)
        grads.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for eager, traced in zip(*grads, strict=True):
        assert torch.equal(eager, traced)


def test_forward_mode_is_that_of_the_views() -> None:
    qkv, tangent = torch.randn(2, B, N, 3, H, D)
    outs = [
        torch.func.jvp(function, (qkv,), (tangent,))
        for function in (
            lambda x: attention_packed(x, backend="triton"),
            lambda x: attention(*x.permute(2, 0, 3, 1, 4), backend="triton"),
        )
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outs, strict=True))
    assert outs[0][1].square().sum() > 0
