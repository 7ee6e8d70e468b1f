"""The refiner of a prompt's tokens: what it leaves alone, what reads what, and how a trained model gets one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmdit.models.conditioners import make_conditioner
from mmdit.models.refiner import TokenRefiner
from mmdit.models.transformer import MultimodalDiT
from mmdit.models.widen import start_from

B, L, D = 3, 5, 16
MASK = torch.tensor([[True] * L, [True, True, False, False, False], [False] * L])


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trained() -> TokenRefiner:
    torch.manual_seed(0)
    return TokenRefiner(D, 2)


def test_it_begins_as_the_identity(tokens, trained):
    trained.start_as_identity()
    assert torch.equal(trained(tokens, MASK), tokens)
    assert TokenRefiner(D, 0)(tokens, MASK) is tokens


def test_against_torch(tokens, trained):
    """A layer of torch.nn.TransformerEncoderLayer with the same weights, norm first."""
    own = trained.layers[0]
    layer = torch.nn.TransformerEncoderLayer(
        D, 1, 4 * D, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
    )
    weights = {
        "self_attn.in_proj_weight": torch.cat([own.attn.q.weight, own.attn.kv.weight]),
        "self_attn.in_proj_bias": torch.cat([own.attn.q.bias, own.attn.kv.bias]),
        "self_attn.out_proj.weight": own.attn.proj.weight,
        "self_attn.out_proj.bias": torch.zeros(D),
        **{
            f"linear{i}.{kind}": getattr(getattr(own.mlp, f"fc{i}"), kind)
            for i in (1, 2)
            for kind in ("weight", "bias")
        },
        **{f"norm1.{kind}": getattr(own.attn_norm, kind) for kind in ("weight", "bias")},
        **{f"norm2.{kind}": getattr(own.mlp_norm, kind) for kind in ("weight", "bias")},
    }
    layer.load_state_dict(weights)
    expected = layer(tokens[:2], src_key_padding_mask=~MASK[:2])
    torch.testing.assert_close(own(tokens, MASK)[:2][MASK[:2]], expected[MASK[:2]], atol=1e-5, rtol=1e-4)


def test_words_read_both_ways_and_no_padding(tokens, trained):
    out = trained(tokens, MASK)
    assert torch.isfinite(out).all()
    changed = tokens.clone()
    changed[0, -1] *= -1  # the last word reaches the first
    changed[1, 2:] += 1  # padding reaches nothing
    again = trained(changed, MASK)
    assert (again[0, 0] - out[0, 0]).abs().max() > 1e-3
    assert torch.equal(again[1, :2], out[1, :2])


@pytest.mark.parametrize("name", ["tiue", "interleaved"])
def test_a_trained_model_gets_one(name):
    """What it was trained to do is the same, bit for bit, until the refiner learns."""
    torch.manual_seed(0)
    settings = {"modalities": ["rgb"], "sample_size": 4, "hidden_size": D, "depth": 1, "num_heads": 2, "num_classes": 3}
    small = {"text_width": 6, **({"image_width": 4} if name == "tiue" else {})}
    common = {**settings, "block": "cross", "conditioner": name}
    before = MultimodalDiT(**common, conditioner_settings=small)
    after = MultimodalDiT(**common, conditioner_settings={**small, "refiner_depth": 2})
    start_from(after, before)
    theirs = before.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in after.state_dict().items() if key in theirs)
    assert len(after.conditioner.refiner.layers) == 2
    made = make_conditioner(name, 3, D, 0.1, {**small, "refiner_depth": 1})
    made.reset_parameters()
    tokens = torch.randn(B, L, D)
    assert torch.equal(made.refiner(tokens, MASK), tokens)
