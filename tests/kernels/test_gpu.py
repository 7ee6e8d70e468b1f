"""The kernels on a GPU: the interpreter's checks at real sizes, repeats, 64-bit offsets, torch.compile."""

from __future__ import annotations

import pytest
import torch
from attention_cases import BF16, F16, F32, Case, check
from jvp_cases import check_adaln_jvp, check_jvp
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate, status
from mmdit_kernels.adaln.reference import (
    gated_residual_layernorm_modulate_reference,
    gated_residual_layernorm_modulate_torch,
)
from mmdit_kernels.attention import configs
from mmdit_kernels.attention.reference import attention_torch
from mmdit_kernels.dispatch import device_problem
from mmdit_kernels.testing import relative_rms
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or device_problem("cuda") is not None, reason="no GPU that the kernels run on"
    ),
]


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("d", [8, 16, 32, 40, 64, 72, 80, 96, 128])
def test_attention(dtype: torch.dtype, d: int) -> None:
    check(Case(dtype, d, 256, 256, b=3, h=5), device="cuda")
    check(Case(dtype, d, 257, 300, b=3, h=1, mask=True), device="cuda")
    check(Case(dtype, d, 131, 131, b=1, h=3, norm=True, rope=2, mask=True), device="cuda")
    check(Case(dtype, d, 33, 65, h=3, layout="columns"), device="cuda")
    check(Case(dtype, d, 70, 129, h=3, layout="shared"), device="cuda")


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("d", [7, 384, 768, 1000, 1152, 4096, 8192])
def test_adaln(dtype: torch.dtype, d: int) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(3, 257, d, device="cuda", dtype=dtype) for _ in range(2))
    vectors = torch.randn(3, 3 * d, device="cuda", dtype=dtype).chunk(3, 1)
    d_h, d_out = torch.randn_like(x), torch.randn_like(x)
    results = []
    for function, wide in (
        (gated_residual_layernorm_modulate, False),
        (gated_residual_layernorm_modulate_torch, False),
        (gated_residual_layernorm_modulate_reference, True),
    ):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in (x, y, *vectors)]
        outs = function(*leaves)
        results.append((*outs, *torch.autograd.grad(outs, leaves, [g.to(outs[0].dtype) for g in (d_h, d_out)])))
    for ours, theirs, exact in zip(*results, strict=True):
        bound = 2e-6 if dtype == F32 else 1.2 * relative_rms(theirs, exact)
        assert relative_rms(ours, exact) <= bound


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("d", [8, 32, 64, 72, 96, 128])
def test_tangent_of_attention(dtype: torch.dtype, d: int) -> None:
    check_jvp(Case(dtype, d, 256, 256, b=3, h=5), device="cuda")
    check_jvp(Case(dtype, d, 257, 300, b=3, h=1, mask=True), device="cuda")
    check_jvp(Case(dtype, d, 131, 131, b=1, h=3, norm=True, rope=2, mask=True), device="cuda")
    check_jvp(Case(dtype, d, 33, 65, h=3, layout="columns"), missing="k", device="cuda")


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("d", [7, 768, 1152, 8192])
def test_tangent_of_adaln(dtype: torch.dtype, d: int) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(3, 257, d).to(dtype) for _ in range(2))
    tensors = [x, y, *torch.randn(3, 3 * d).to(dtype).chunk(3, 1)]
    ops = (
        gated_residual_layernorm_modulate,
        gated_residual_layernorm_modulate_torch,
        gated_residual_layernorm_modulate_reference,
    )
    check_adaln_jvp(ops, tensors, device="cuda")


def test_auto_takes_the_kernels() -> None:
    assert status()["attention"] == "triton"
    q = torch.randn(1, 1, 8, 16, device="cuda", requires_grad=True)
    assert torch.equal(attention(q, q, q), attention(q, q, q, backend="triton"))


def test_repeats_are_identical() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(8, 256, 3, 16, 72, device="cuda", dtype=BF16, requires_grad=True)
    weight = torch.ones(72, device="cuda", requires_grad=True)
    grads = []
    for _ in range(3):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = attention(q, k, v, q_weight=weight, k_weight=weight, backend="triton")
        grads.append((out, *torch.autograd.grad(out.float().square().sum(), (qkv, weight))))
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))


def needs(gibibytes: int) -> None:
    """Skip where the GPU has less memory free, after what earlier tests left in PyTorch's cache is given back."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of free memory")


@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("d", [40, 64, 72, 80])
def test_attention_backward_in_one_pass(dtype: torch.dtype, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("its tiles are those of sm_90")
    asked = []

    def tuned(key: str, device: torch.device | None = None) -> list[int] | None:
        asked.append(key)
        return list(configs.ONE_PASS) if key.startswith("attention_backward/") else None

    monkeypatch.setattr(configs, "tuned", tuned)
    check(Case(dtype, d, 256, 256, b=3, h=5), device="cuda")
    check(Case(dtype, d, 512, 128, b=3, h=5), device="cuda")
    assert not any(key.startswith(("attention_backward_q/", "attention_backward_kv/")) for key in asked)


def test_offsets_beyond_32_bits() -> None:
    """More than 2^31 elements in q: the last sample is that of the last sample alone."""
    b, n, h, d = 30, 16384, 64, 72
    needs(18)  # 12.7 for q, k and v, 4.2 for the output
    qkv = torch.randn(b, n, 3, h, d, device="cuda", dtype=BF16)
    assert b * n * h * d > 2**31
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    k, v = k[:, :, :64], v[:, :, :64]
    out = attention(q, k, v, backend="triton")
    alone = attention_torch(q[-1:, -1:], k[-1:, -1:], v[-1:, -1:])
    torch.testing.assert_close(out[-1:, -1:], alone, atol=2e-2, rtol=2e-2)


def test_adaln_beyond_32_bits() -> None:
    """More than 2^31 elements in every activation: the last tokens, forward and backward, are those of them alone."""
    b, t, d = 2, 2**20, 1152
    needs(29)  # 4.5 each for x, y, h, the output and two gradients
    x, y = (torch.randn(b, t, d, device="cuda", dtype=BF16) for _ in range(2))
    vectors = torch.randn(b, 3 * d, device="cuda", dtype=BF16).chunk(3, 1)
    assert x.numel() > 2**31
    results = []
    for first in (0, t - 64):
        leaves = [tensor.detach().requires_grad_() for tensor in (x[-1:, first:], y[-1:, first:])]
        if first == 0:
            leaves = [tensor.detach().requires_grad_() for tensor in (x, y)]
        more = vectors if first == 0 else [vector[-1:] for vector in vectors]
        h, out = gated_residual_layernorm_modulate(*leaves, *more, backend="triton")
        grads = torch.autograd.grad((h, out), leaves, (h.detach(), out.detach()))
        results.append([tensor[-1, -64:].clone() for tensor in (h, out, *grads)])
        del leaves, h, out, grads
    assert all(torch.equal(long, alone) for long, alone in zip(*results, strict=True))


def test_a_compiled_block_has_no_graph_break() -> None:
    torch.manual_seed(0)

    def chain(x: Tensor, c: Tensor) -> Tensor:
        b, t, d = x.shape
        y = layernorm_modulate(x, c, c, backend="triton")
        q, k, v = torch.cat((y, y, y), -1).view(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        y = attention(q, k, v, backend="triton").transpose(1, 2).flatten(2)
        h, out = gated_residual_layernorm_modulate(x, y, c, c, c, backend="triton")
        return h + out

    inputs = (torch.randn(2, 70, 144, device="cuda"), torch.randn(2, 144, device="cuda"))
    grads = []
    for function in (chain, torch.compile(chain, fullgraph=True)):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        grads.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
