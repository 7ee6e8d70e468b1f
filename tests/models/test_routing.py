"""Tokens that skip blocks, against blocks applied to one sample at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.models.routing import Route
from mmdit.models.transformer import MultimodalDiT

KEPT = torch.tensor([[0, 3, 5, 9, 14], [1, 2, 5, 6, 15]])


def routed_by_hand(model: MultimodalDiT, inputs: tuple[Any, ...], first: int, last: int) -> tuple[Tensor, Tensor]:
    """(sample, tokens behind block 3): each sample alone, its own tokens cut out and put back."""
    latents, timesteps, roles, conditioning = inputs
    h = latents.shape[-2] // 2
    grid = (h, latents.shape[-1] // 2)
    samples, tapped = [], []
    for i in range(len(latents)):
        x, rope = model.position_embed(model.patch_embed(latents[i : i + 1]), grid)
        prompt = Conditioning(conditioning.vector[i : i + 1])
        if conditioning.tokens is not None:
            prompt = Conditioning(prompt.vector, conditioning.tokens[i : i + 1], conditioning.token_mask[i : i + 1])
        c = model.time_embed(timesteps[i : i + 1]) + model.role_embed(roles[i : i + 1]) + prompt.vector
        for number, block in enumerate(model.blocks, start=1):
            if first <= number <= last:
                own = None if rope is None else (rope[0][KEPT[i]], rope[1][KEPT[i]])
                through = block(x[:, KEPT[i]], c, own, prompt)
                x = x.clone()
                x[:, KEPT[i]] = through
            else:
                x = block(x, c, rope, prompt)
            if number == 3:
                tapped.append(x)
        samples.append(model.head(x, c, grid))
    return torch.cat(samples), torch.cat(tapped)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"position_embedding": "rope", "qk_norm": "rms_norm"},
        {"block": "cross"},
        {"block": "joint", "position_embedding": "rope"},
    ],
)
@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 4), (3, 3)])
def test_against_one_sample_at_a_time(make_model, make_inputs, config: dict[str, Any], first: int, last: int) -> None:
    model = make_model(depth=4, alignment_depth=3, alignment_dim=6, **config)
    latents, timesteps, roles, prompt = make_inputs(model)
    if "block" in config:
        tokens = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
        prompt = Conditioning(prompt.vector, tokens, torch.tensor([[True, True, False], [True, True, True]]))
    inputs = (latents, timesteps, roles, prompt)
    route = Route(KEPT, first, last)
    out = model(*inputs, output_alignment=True, route=route)
    expected, tapped = routed_by_hand(model, inputs, first, last)
    torch.testing.assert_close(out.sample, expected, atol=1e-5, rtol=1e-5)
    if route.is_sparse_behind(3):
        tapped = torch.stack([tokens[own] for tokens, own in zip(tapped, KEPT, strict=True)])
    torch.testing.assert_close(out.alignment, model.projector(tapped), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(out.sample, model(*inputs).sample, atol=1e-2)


def test_all_tokens_is_no_routing(make_model, make_inputs) -> None:
    model = make_model(depth=3, position_embedding="rope")
    inputs = make_inputs(model)
    everything = Route(torch.arange(16).expand(2, -1), 2, 3)
    torch.testing.assert_close(model(*inputs, route=everything).sample, model(*inputs).sample)


def test_checkpointing_gives_the_same_gradients(make_model, make_inputs) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(depth=3, position_embedding="rope").train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(*make_inputs(model), route=Route(KEPT, 2, 2)).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_attention_of_a_block_that_tokens_skip_is_refused(make_model, make_inputs) -> None:
    model = make_model(depth=3, block="cross")
    with pytest.raises(ValueError, match=r"output_attention is \[2\]: tokens skip blocks 2 to 3"):
        model(*make_inputs(model), route=Route(KEPT, 2, 3), output_attention=[2])


def test_blocks_around_the_span_add_their_own_sums(make_model, make_inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a kernel does a block's last sum with the next one's norm, no sum is left over at the ends of the span."""
    model = make_model(depth=5, alignment_depth=4, alignment_dim=6, internal_guidance_depth=2)
    inputs = make_inputs(model)
    arguments = {"route": Route(KEPT, 3, 3), "output_alignment": True, "output_internal": True}
    expected = model(*inputs, **arguments)
    monkeypatch.setattr("mmdit.models.blocks.residual_is_fused", lambda x: True)
    assert model._unadded(torch.zeros(1, 1, 32), set()) == {1, 2, 3, 4}
    out = model(*inputs, **arguments)
    for name in ("sample", "alignment", "internal_sample"):
        torch.testing.assert_close(out[name], expected[name], atol=1e-5, rtol=1e-4)
