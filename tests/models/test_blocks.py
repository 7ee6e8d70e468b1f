"""The cross block against a naive re-implementation, and as the DiT block where no token is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.conditioning import Conditioning
from mmdit.models.blocks import BLOCKS, Block, CrossBlock, DiTBlock
from mmdit.models.transformer import MultimodalDiT

MakeModel = Callable[..., MultimodalDiT]


def random_block(cls: type[Block], qk_norm: str | None = None) -> Block:
    generator = torch.Generator().manual_seed(0)
    block = cls(32, 2, 4.0, qk_norm)
    with torch.no_grad():
        for name, parameter in sorted(block.named_parameters()):
            if not name.startswith("cross."):
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
        for name, parameter in sorted(block.named_parameters()):
            if name.startswith("cross."):
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


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_without_tokens_trained_weights_add_exactly_nothing(
    inputs: tuple[Tensor, Tensor, Conditioning], qk_norm: str | None
) -> None:
    x, c, context = inputs
    plain, cross = random_block(DiTBlock, qk_norm), random_block(CrossBlock, qk_norm)
    expected = plain(x, c)
    none = replace(context, token_mask=torch.zeros(3, 5, dtype=torch.bool))
    empty = Conditioning(c, torch.zeros(3, 0, 32))
    for without in (None, Conditioning(c), none, empty):
        assert torch.equal(cross(x, c, None, without), expected)
    assert torch.equal(cross(x, c, None, context)[2], expected[2])  # a sample without, beside samples with tokens


def test_padding_and_batch_mates_change_nothing(inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
    x, c, context = inputs
    block = random_block(CrossBlock)
    whole = block(x, c, None, context)
    assert context.tokens is not None
    alone = block(x[1:2], c[1:2], None, Conditioning(c[1:2], context.tokens[1:2, :2]))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)
    other = context.tokens.clone()
    other[1, 2:] = 1e3
    torch.testing.assert_close(block(x, c, None, replace(context, tokens=other))[1], whole[1], atol=1e-5, rtol=1e-4)


def test_a_fresh_cross_block_starts_as_a_dit_block(inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
    x, c, context = inputs
    block = CrossBlock(32, 2)
    block.reset_parameters()
    assert torch.equal(block(x, c, None, context), block(x, c))
    assert block.cross.q.weight.std() > 0.1
    (block(x, c, None, context) - 1).square().mean().backward()
    assert block.cross.proj.weight.grad is not None
    assert block.cross.proj.weight.grad.abs().max() > 0  # what begins at zero learns


def test_one_prompt_serves_a_batch(inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
    x, c, context = inputs
    assert context.tokens is not None
    block = random_block(CrossBlock)
    one = Conditioning(c[:1], context.tokens[:1])
    three = Conditioning(c, context.tokens[:1].expand(3, -1, -1))
    torch.testing.assert_close(block(x, c, None, one), block(x, c, None, three))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_one(name: str, make_model: MakeModel) -> None:
    model = make_model(block=name)
    assert all(isinstance(block, Block) for block in model.blocks)
    assert model._repeated_blocks == [BLOCKS[name].__name__]
    assert isinstance(model.blocks, nn.ModuleList)


def test_gradient_checkpointing_and_compilation_with_tokens(make_model: MakeModel) -> None:
    generator = torch.Generator().manual_seed(2)
    latents, t = torch.randn(2, 4, 4, 8, 8, generator=generator), torch.rand(2, 4, generator=generator)
    roles, tokens = torch.zeros(2, 4, dtype=torch.long), torch.randn(2, 3, 32, generator=generator)
    prompt = Conditioning(torch.zeros(2, 32), tokens.requires_grad_())
    results = []
    for checkpointing in (False, True):
        model = make_model(block="cross", depth=1).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        out = model(latents, t, roles, prompt).sample
        results.append((out, *torch.autograd.grad(out.square().sum(), [tokens, model.blocks[0].cross.q.weight])))
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, checkpointed)
    model = make_model(block="cross", depth=1)
    with torch.no_grad():
        expected = model(latents, t, roles, prompt).sample
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch.testing.assert_close(model(latents, t, roles, prompt).sample, expected)
