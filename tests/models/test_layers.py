from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.models.blocks import DiTBlock
from mmdit.models.layers import MLP, AdaLayerNorm, SelfAttention

B, T, D, HEADS = 2, 6, 16, 2


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def naive_attention(layer: SelfAttention, x: Tensor) -> Tensor:
    """Softmax attention head by head; timm's layout of qkv: q, k, v, each (heads, head dimension)."""
    d = D // HEADS
    q, k, v = F.linear(x, layer.qkv.weight, layer.qkv.bias).split(D, dim=-1)
    heads = []
    for h in range(HEADS):
        one = slice(h * d, (h + 1) * d)
        query, key = q[..., one], k[..., one]
        weights = layer.qk_norm()
        if weights[0] is not None:
            query = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[0]
            key = key / (key.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[1]
        heads.append((query @ key.transpose(1, 2) / math.sqrt(d)).softmax(-1) @ v[..., one])
    return F.linear(torch.cat(heads, dim=-1), layer.proj.weight, layer.proj.bias)


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_attention(qk_norm: str | None) -> None:
    layer = SelfAttention(D, HEADS, qk_norm)
    randomise(layer)
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), naive_attention(layer, x), atol=1e-5, rtol=1e-4)


def test_mlp_uses_the_tanh_gelu() -> None:
    layer = MLP(D, 2.0)
    randomise(layer)
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))
    h = F.linear(x, layer.fc1.weight, layer.fc1.bias)
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(layer(x), F.linear(gelu, layer.fc2.weight, layer.fc2.bias), atol=1e-5, rtol=1e-4)


def test_ada_layer_norm() -> None:
    layer = AdaLayerNorm(D)
    randomise(layer)
    x, c = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)), torch.ones(B, D)
    modulation = F.linear(F.silu(c), layer.modulation[1].weight, layer.modulation[1].bias)[:, None]
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    expected = (x - mean) / (variance + 1e-6).sqrt() * (1 + modulation[..., D:]) + modulation[..., :D]
    torch.testing.assert_close(layer(x, c), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_block_is_adaln_zero(qk_norm: str | None) -> None:
    block = DiTBlock(D, HEADS, mlp_ratio=2.0, qk_norm=qk_norm)
    randomise(block)
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(B, T, D, generator=generator), torch.randn(B, D, generator=generator)

    def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(h, (D,), eps=1e-6) * (1 + scale) + shift

    # order of the six: shift, scale, gate of attention, then of the MLP (DiT)
    parts = F.linear(F.silu(c), block.modulation[1].weight, block.modulation[1].bias)[:, None].split(D, dim=-1)
    h = x + parts[2] * naive_attention(block.attn, modulate(x, parts[0], parts[1]))
    expected = h + parts[5] * block.mlp(modulate(h, parts[3], parts[4]))
    torch.testing.assert_close(block(x, c), expected, atol=1e-4, rtol=1e-4)

    torch.nn.init.zeros_(block.modulation[1].weight)
    torch.nn.init.zeros_(block.modulation[1].bias)
    torch.testing.assert_close(block(x, c), x)  # gates at zero: the identity


def test_under_autocast_the_norms_round_for_the_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph, and with the same bits as when float32 norms are cast by autocast."""
    block = DiTBlock(D, HEADS)
    randomise(block)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(B, T, D, generator=generator), torch.randn(B, D, generator=generator)
    seen = []
    block.attn.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = block(*inputs)
        monkeypatch.setattr("mmdit.models.blocks.matmul_dtype", lambda x: None)
        assert torch.equal(block(*inputs), out)
    assert seen == [torch.bfloat16, torch.float32]
    monkeypatch.undo()
    plain = DiTBlock(D, HEADS)
    plain.load_state_dict(block.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(plain, backend="eager", fullgraph=True)(*inputs), out)
    assert DiTBlock(D, HEADS).double()(inputs[0].double(), inputs[1].double()).dtype == torch.float64
