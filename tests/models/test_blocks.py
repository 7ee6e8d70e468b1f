"""Blocks that attend to a prompt against naive re-implementations, and as the DiT block where no token is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.conditioning import Conditioning
from mmdit.models.blocks import BLOCKS, Block, CrossBlock, DiTBlock, JointBlock
from mmdit.models.transformer import MultimodalDiT

MakeModel = Callable[..., MultimodalDiT]
PROMPTED = [CrossBlock, JointBlock]
OWN = ("cross.", "attn.prompt_kv.", "attn.gate")  # what the blocks add to the DiT block


def random_block(cls: type[Block], qk_norm: str | None = None) -> Block:
    generator = torch.Generator().manual_seed(0)
    block = cls(32, 2, 4.0, qk_norm)
    with torch.no_grad():
        for name, parameter in sorted(block.named_parameters()):
            if not name.startswith(OWN):
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
        for name, parameter in sorted(block.named_parameters()):
            if name.startswith(OWN):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return block.eval()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(3, 16, 32, generator=generator), torch.randn(3, 32, generator=generator)
    tokens = torch.randn(3, 5, 32, generator=generator)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    return x, c, Conditioning(c, tokens, mask)


def test_cross_attention_by_hand(inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
    x, c, context = inputs
    block = random_block(CrossBlock)
    weights = block.state_dict()
    assert context.tokens is not None
    assert context.token_mask is not None
    expected = []
    for i in range(3):
        tokens = context.tokens[i][context.token_mask[i]]  # masked tokens are as if they were not there
        q = F.layer_norm(x[i], (32,), eps=1e-6) @ weights["cross.q.weight"].T + weights["cross.q.bias"]
        k, v = (tokens @ weights["cross.kv.weight"].T + weights["cross.kv.bias"]).chunk(2, dim=-1)
        heads = [
            ((q[:, h] @ k[:, h].T) / 4).softmax(-1) @ v[:, h] for h in (slice(0, 16), slice(16, 32))
        ]  # (T, d) each
        added = torch.cat(heads, dim=-1) @ weights["cross.proj.weight"].T
        expected.append(DiTBlock.forward(block, (x[i] + added)[None], c[i : i + 1]))  # type: ignore[arg-type]
    with torch.no_grad():
        out = block(x, c, None, context)
    torch.testing.assert_close(out, torch.cat(expected), atol=1e-5, rtol=1e-4)
    assert (out[:2] - block(x, c)[:2]).abs().max() > 0.05


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turn = torch.complex(rope[0][:, 0::2].double(), rope[1][:, 0::2].double())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x)


@pytest.mark.parametrize("turned", [False, True])
def test_joint_attention_by_hand(inputs: tuple[Tensor, Tensor, Conditioning], turned: bool) -> None:
    """One softmax over image and prompt, of which the gate lets a part through."""
    x, _, context = inputs
    attn = random_block(JointBlock, "rms_norm").attn
    weights = attn.state_dict()
    angles = torch.randn(16, 8, generator=torch.Generator().manual_seed(3)).repeat_interleave(2, -1)
    rope = (angles.cos(), angles.sin()) if turned else None
    assert context.tokens is not None
    assert context.token_mask is not None
    q_weight, k_weight = weights["qk_norm.q_weight"], weights["qk_norm.k_weight"]
    expected, expected_maps = [], []
    for i in range(3):
        tokens = context.tokens[i][context.token_mask[i]]
        q, k, v = (x[i] @ weights["qkv.weight"].T + weights["qkv.bias"]).chunk(3, dim=-1)
        pk, pv = (tokens @ weights["prompt_kv.weight"].T + weights["prompt_kv.bias"]).chunk(2, dim=-1)
        heads, maps = [], []
        for number, h in enumerate((slice(0, 16), slice(16, 32))):
            qh, kh, pkh = _rms(q[:, h], q_weight), _rms(k[:, h], k_weight), _rms(pk[:, h], k_weight)
            if rope is not None:
                qh, kh = _rotated(qh, rope), _rotated(kh, rope)
            alone = (qh @ kh.T / 4).softmax(-1) @ v[:, h]
            both = (qh @ torch.cat([kh, pkh]).T / 4).softmax(-1)
            gate = weights["gate"][number]
            heads.append((1 - gate) * alone + gate * (both @ torch.cat([v[:, h], pv[:, h]])))
            maps.append(F.pad(both[:, 16:], (0, 5 - len(tokens))))
        expected.append(torch.cat(heads, -1) @ weights["proj.weight"].T + weights["proj.bias"])
        expected_maps.append(sum(maps) / 2)
    out = attn(x, rope, context.tokens, context.token_mask)
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-5, rtol=1e-4)
    maps = attn.map(x, rope, context.tokens, context.token_mask)
    torch.testing.assert_close(maps, torch.stack(expected_maps), atol=1e-6, rtol=1e-4)
    assert (out[:2] - attn(x, rope)[:2]).abs().max() > 0.05


@pytest.mark.parametrize("cls", PROMPTED)
@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_without_tokens_trained_weights_add_exactly_nothing(
    inputs: tuple[Tensor, Tensor, Conditioning], qk_norm: str | None, cls: type[Block]
) -> None:
    x, c, context = inputs
    plain, cross = random_block(DiTBlock, qk_norm), random_block(cls, qk_norm)
    assert {"attn.qkv.weight", "mlp.fc1.bias"} <= plain.state_dict().keys() <= cross.state_dict().keys()
    expected = plain(x, c)
    none = replace(context, token_mask=torch.zeros(3, 5, dtype=torch.bool))
    empty = Conditioning(c, torch.zeros(3, 0, 32))
    for without in (None, Conditioning(c), none, empty):
        assert torch.equal(cross(x, c, None, without), expected)
    assert torch.equal(cross(x, c, None, context)[2], expected[2])  # a sample without, beside samples with tokens


@pytest.mark.parametrize("cls", PROMPTED)
def test_padding_and_batch_mates_change_nothing(inputs: tuple[Tensor, Tensor, Conditioning], cls: type[Block]) -> None:
    x, c, context = inputs
    block = random_block(cls)
    whole = block(x, c, None, context)
    assert context.tokens is not None
    alone = block(x[1:2], c[1:2], None, Conditioning(c[1:2], context.tokens[1:2, :2]))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)
    other = context.tokens.clone()
    other[1, 2:] = 1e3
    torch.testing.assert_close(block(x, c, None, replace(context, tokens=other))[1], whole[1], atol=1e-5, rtol=1e-4)
    maps = block.attention_map(x, c, None, context)
    assert (maps[1, :, 2:] == 0).all()
    assert (maps[2] == 0).all()
    assert (maps[0] > 0).all()


def test_a_fresh_cross_block_starts_as_a_dit_block(inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
    x, c, context = inputs
    block = CrossBlock(32, 2)
    block.reset_parameters()
    assert torch.equal(block(x, c, None, context), block(x, c))
    assert block.cross.q.weight.std() > 0.1
    (block(x, c, None, context) - 1).square().mean().backward()
    assert block.cross.proj.weight.grad is not None
    assert block.cross.proj.weight.grad.abs().max() > 0  # what begins at zero learns


def test_a_joint_block_that_starts_as_a_dit_block_opens(inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
    x, c, context = inputs
    plain, block = random_block(DiTBlock), random_block(JointBlock)
    block.start_as_base()
    assert torch.equal(block(x, c, None, context), plain(x, c))
    (block(x, c, None, context) - 1).square().mean().backward()
    assert isinstance(block, JointBlock)
    assert (block.attn.gate.grad.abs() > 0).all()
    fresh = JointBlock(32, 2)
    fresh.reset_parameters()
    assert (fresh.attn.gate == 1).all()


@pytest.mark.parametrize("cls", PROMPTED)
def test_one_prompt_serves_a_batch(inputs: tuple[Tensor, Tensor, Conditioning], cls: type[Block]) -> None:
    x, c, context = inputs
    assert context.tokens is not None
    block = random_block(cls)
    one = Conditioning(c[:1], context.tokens[:1])
    three = Conditioning(c, context.tokens[:1].expand(3, -1, -1))
    torch.testing.assert_close(block(x, c, None, one), block(x, c, None, three))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_one(name: str, make_model: MakeModel) -> None:
    model = make_model(block=name)
    assert all(isinstance(block, Block) for block in model.blocks)
    assert model._repeated_blocks == [BLOCKS[name].__name__]
    assert isinstance(model.blocks, nn.ModuleList)


@pytest.mark.parametrize(("name", "weight"), [("cross", "cross.q.weight"), ("joint", "attn.prompt_kv.weight")])
def test_gradient_checkpointing_and_compilation_with_tokens(make_model: MakeModel, name: str, weight: str) -> None:
    generator = torch.Generator().manual_seed(2)
    latents, t = torch.randn(2, 4, 4, 8, 8, generator=generator), torch.rand(2, 4, generator=generator)
    roles, tokens = torch.zeros(2, 4, dtype=torch.long), torch.randn(2, 3, 32, generator=generator)
    prompt = Conditioning(torch.zeros(2, 32), tokens.requires_grad_())
    results = []
    for checkpointing in (False, True):
        model = make_model(block=name, depth=1).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(latents, t, roles, prompt, output_attention=(1,))
        loss = output.sample.square().sum() + output.attention.square().sum()
        watched = [tokens, model.blocks[0].get_parameter(weight)]
        results.append((output.sample, output.attention, *torch.autograd.grad(loss, watched)))
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, checkpointed)
    model = make_model(block=name, depth=1)
    with torch.no_grad():
        expected = model(latents, t, roles, prompt).sample
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch.testing.assert_close(model(latents, t, roles, prompt).sample, expected)
