"""LoRA on the transformer, against the sum of the matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.models.adapters import check_weights, linear_layers, lora_targets
from mmdit.models.transformer import MultimodalDiT

MakeModel = Callable[..., MultimodalDiT]
MakeInputs = Callable[..., tuple[Tensor, Tensor, Tensor, Conditioning]]


def adapter(seed: int = 0, rank: int = 3, alpha: float = 6.0, targets: list[str] | None = None) -> LoraConfig:
    torch.manual_seed(seed)
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)


def summed(model: MultimodalDiT, *adapters: tuple[dict[str, Tensor], float]) -> MultimodalDiT:
    """A copy with W + scale B A in place of each W."""
    made = copy.deepcopy(model)
    layers = dict(linear_layers(made))
    with torch.no_grad():
        for weights, scale in adapters:
            for name in check_weights(made, weights, "these"):
                layers[name].weight += scale * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
    return made


@torch.no_grad()
@pytest.mark.parametrize("block", ["dit", "cross", "joint"])
def test_an_adapter_is_a_sum_of_matrices(make_model: MakeModel, make_inputs: MakeInputs, block: str) -> None:
    model = make_model(block=block, qk_norm="rms_norm", second_time=True)
    latents, t, roles, conditioning = make_inputs(model)
    tokens = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(4))
    inputs = (latents, t, roles, Conditioning(conditioning.vector, tokens))
    base, plain = copy.deepcopy(model), model(*inputs).sample
    every = [name for name, _ in linear_layers(model)]
    model.add_adapter(adapter(targets=every), "all")
    weights = get_peft_model_state_dict(model, adapter_name="all")
    assert len(weights) == 2 * len(every)
    expected = summed(base, (weights, 2.0))(*inputs).sample
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(model(*inputs).sample, expected)
    assert [name for name, _ in linear_layers(model)] == every  # its parts are no layers of the network
    for layer in (model.head.linears[0], model.time_embed, model.blocks[0].modulation):  # each of them is reached
        assert any("lora_" in name for name, _ in layer.named_parameters())

    model.disable_adapters()
    assert torch.equal(model(*inputs).sample, plain)
    model.enable_adapters()
    model.add_adapter(adapter(1, 2, 1.0), "tokens")
    assert model.active_adapters() == ["tokens"]
    other = get_peft_model_state_dict(model, adapter_name="tokens")
    model.set_adapters(["all", "tokens"], [0.25, 1.5])
    both = summed(base, (weights, 0.25 * 2.0), (other, 1.5 * 0.5))(*inputs).sample
    torch.testing.assert_close(model(*inputs).sample, both)

    model.fuse_lora()
    torch.testing.assert_close(model(*inputs).sample, both)
    model.unfuse_lora()
    torch.testing.assert_close(model(*inputs).sample, both)
    model.delete_adapters("all")
    torch.testing.assert_close(model(*inputs).sample, summed(base, (other, 0.75))(*inputs).sample)
    model.fuse_lora()
    model.unload_lora()
    assert model.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(model(*inputs).sample, summed(base, (other, 0.75))(*inputs).sample)


def test_only_the_adapter_learns(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model()
    model.add_adapter(adapter())
    model.train().enable_gradient_checkpointing()
    model(*make_inputs(model)).sample.square().mean().backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learns == {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(learns) == 2 * 2 * len(lora_targets(model)) == 16
    assert lora_targets(model) == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


@torch.no_grad()
def test_beside_caches_and_stored_dtypes(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model()
    model.add_adapter(adapter())
    inputs = make_inputs(model)
    expected = model(*inputs).sample
    model.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    with model.cache_context("one"):
        assert torch.equal(model(*inputs).sample, expected)
        torch.testing.assert_close(model(*inputs).sample, expected)  # nothing changed: the blocks behind it are skipped
    model.disable_cache()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16)
    assert model.blocks[0].attn.qkv.base_layer.weight.dtype == torch.bfloat16
    out = model(*inputs).sample
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_saved_and_loaded_alone(make_model: MakeModel, make_inputs: MakeInputs, tmp_path: Path) -> None:
    model, fresh = make_model(), make_model()
    model.add_adapter(adapter(), "style")
    model.save_lora_adapter(tmp_path, "style")
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert '"lora_alpha": 6.0' in file.metadata()["lora_adapter_metadata"]
    fresh.load_lora_adapter(tmp_path, prefix=None, adapter_name="style", use_safetensors=True)
    inputs = make_inputs(model)
    torch.testing.assert_close(fresh(*inputs).sample, model(*inputs).sample)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0, "target_modules": ["attn.qkv"]}, "the rank r is 0: give a whole number, at least 1"),
        ({"r": 2, "target_modules": ["attn.qkv", "to_q"]}, "unknown LoRA target 'to_q': did you mean '.*'"),
        ({"r": 2, "target_modules": ["attn"]}, "unknown LoRA target 'attn': did you mean 'attn.*'"),
        ({"r": 2, "target_modules": ["embedding_table"]}, "unknown LoRA target 'embedding_table'"),
    ],
)
def test_bad_adapters(make_model: MakeModel, config: dict, message: str) -> None:
    model = make_model()
    before = list(model.state_dict())
    with pytest.raises(UserError, match=message) as caught:
        model.add_adapter(LoraConfig(**config))
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before
    model.add_adapter(adapter())  # nothing was left behind
    with pytest.raises(UserError, match="adapter 'default' is there already"):
        model.add_adapter(adapter())


def test_weights_of_another_model(make_model: MakeModel) -> None:
    model, wide = make_model(), make_model(hidden_size=48)
    wide.add_adapter(adapter())
    weights = get_peft_model_state_dict(wide)
    with pytest.raises(
        UserError, match=r"these: is of another model: blocks.0.attn.qkv is 3 x 48 and 144 x 3 there, and rank x 32"
    ):
        check_weights(model, weights, "these")
    with pytest.raises(UserError, match=r"has no linear layer 'blocks.7.attn.qkv'"):
        check_weights(model, {"blocks.7.attn.qkv.lora_A.weight": torch.zeros(1, 32)}, "these")
    with pytest.raises(UserError, match=r"lacks 'blocks.0.attn.qkv.lora_B.weight'"):
        check_weights(model, {"blocks.0.attn.qkv.lora_A.weight": torch.zeros(1, 32)}, "these")
    with pytest.raises(UserError, match=r"'blocks.0.attn.qkv.weight', which is no weight of a LoRA"):
        check_weights(model, {"blocks.0.attn.qkv.weight": torch.zeros(1, 32)}, "these")
    with pytest.raises(UserError, match="holds no LoRA weights"):
        check_weights(model, {}, "these")
