"""The mapping of other people's weights: every key, exact shapes, and the same function by an independent computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from official_networks import State, official_network, random_state
from torch import Tensor

from mmdit.errors import UserError
from mmdit.models.convert import convert_state_dict
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import Role

TOLERANCE = 1e-5


def converted(format: str, state: State, args: dict[str, Any] | None = None) -> MultimodalDiT:
    result = convert_state_dict(format, state, {"encoder_depth": 1, **(args or {})}, num_heads=2)
    model = MultimodalDiT(**result.config)
    model.load_state_dict(result.state_dict)  # strict: nothing missing, nothing left
    return model.eval()


def run(model: MultimodalDiT, x: Tensor, t: Tensor, labels: Tensor, roles: Tensor) -> Tensor:
    """x and the result are (B, M * C, H, W), as the official code has them."""
    m = len(model.config.modalities)
    with torch.no_grad():
        sample = model(x.unflatten(1, (m, -1)), t, roles, model.conditioner(labels)).sample
    return sample.flatten(1, 2)


def inputs(num_modalities: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4 * num_modalities, 8, 8, generator=generator)
    return x, torch.rand(batch, num_modalities, generator=generator), torch.tensor([0, 5, 2])  # 5 is the null class


@pytest.mark.parametrize("task", range(5))
def test_mmgen_for_every_task_token(task):
    state = random_state("mmgen")
    model = converted("mmgen", state)
    x, t, labels = inputs(4)
    roles = torch.full((3, 4), int(Role.GENERATE))
    if task:
        roles[:, task - 1] = Role.CONDITION
    expected = official_network(state, x, t, labels, torch.full((3,), task))
    assert (run(model, x, t, labels, roles) - expected).abs().max() < TOLERANCE
    assert expected.abs().max() > 0.5


def test_mmgen_with_fewer_modalities():
    state = random_state("mmgen", num_modalities=2)
    model = converted("mmgen", state)
    assert list(model.config.modalities) == ["rgb", "depth"]
    x, t, labels = inputs(2)
    roles = torch.tensor([[Role.GENERATE, Role.CONDITION]] * 3)
    expected = official_network(state, x, t, labels, torch.full((3,), 2))
    assert (run(model, x, t, labels, roles) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_repa(learn_sigma):
    state = random_state("repa", learn_sigma=learn_sigma)
    x, t, labels = inputs(1)
    out = run(converted("repa", state), x, t, labels, torch.zeros(3, 1, dtype=torch.long))
    assert (out - official_network(state, x, t, labels)).abs().max() < TOLERANCE


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_sit_runs_the_other_way(learn_sigma):
    """Ours at t, velocity noise - data, is minus SiT's at 1 - t, velocity data - noise."""
    state = random_state("sit", learn_sigma=learn_sigma)
    x, t, labels = inputs(1)
    out = run(converted("sit", state), x, t, labels, torch.zeros(3, 1, dtype=torch.long))
    assert (out + official_network(state, x, 1 - t.double(), labels)).abs().max() < TOLERANCE


def test_config_says_what_the_weights_are():
    result = convert_state_dict("repa", random_state("repa"), {"encoder_depth": 2, "cfg_prob": 0.2}, num_heads=2)
    assert result.config == {
        "modalities": ["rgb"],
        "sample_size": 8,
        "in_channels": 4,
        "patch_size": 2,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "num_classes": 5,
        "class_dropout_prob": 0.2,
        "time_embedding": "sum",
        "alignment_depth": 2,
        "alignment_hidden_size": 24,
        "alignment_dim": 12,
    }


def test_projector_is_the_official_one():
    state = random_state("mmgen")
    model = converted("mmgen", state)
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))
    expected = x
    for i in (0, 2, 4):
        expected = expected @ state[f"projectors.0.{i}.weight"].T + state[f"projectors.0.{i}.bias"]
        expected = torch.nn.functional.silu(expected) if i < 4 else expected
    torch.testing.assert_close(model.projector(x), expected)


def test_large_tensors_are_not_copied():
    state = random_state("mmgen")
    result = convert_state_dict("mmgen", state, {"encoder_depth": 1}, num_heads=2)
    own = {tensor.data_ptr() for tensor in state.values()}
    copied = {key for key, tensor in result.state_dict.items() if tensor.data_ptr() not in own}
    assert copied == {"role_embed.base", "role_embed.table"}


def changed(format: str = "mmgen", drop: str = "", **tensors: Tensor) -> State:
    state = random_state(format)
    state = {key: value for key, value in state.items() if not drop or not key.startswith(drop)}
    return state | {key.replace("__", "."): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("format", "state", "message"),
    [
        ("mmgan", changed(), "unknown format 'mmgan': did you mean 'mmgen'"),
        ("mmgen", changed("repa"), "checkpoint in format 'repa'"),
        ("repa", changed("sit"), "checkpoint in format 'sit' .SiT.*, not 'repa'"),
        ("sit", changed("mmgen"), "checkpoint in format 'mmgen'"),
        ("sit", {"conv.weight": torch.zeros(1)}, "not a network of MMGen, REPA or SiT"),
        ("mmgen", changed(drop="x_embedder"), "missing key x_embedder.proj.weight"),
        ("mmgen", changed(drop="blocks.1.attn."), "missing keys: blocks.1.attn.qkv.weight, .* and 1 more"),
        ("mmgen", changed(drop="taskcond"), "missing keys: taskcond_embedder.embedding_table.weight$"),
        (
            "mmgen",
            changed(blocks__0__attn__q_norm__weight=torch.zeros(16)),
            "unknown keys: blocks.0.attn.q_norm.weight",
        ),
        (
            "mmgen",
            changed(blocks__0__attn__proj__weight=torch.zeros(32, 31)),
            r"wrong shapes: blocks.0.attn.proj.weight is \(32, 31\), expected \(32, 32\)",
        ),
        ("mmgen", changed(pos_embed=torch.zeros(1, 16, 32)), "pos_embed is not the sine-cosine table"),
        ("mmgen", changed(pos_embed=torch.zeros(1, 15, 32)), "15 tokens"),
        ("mmgen", changed(pos_embed=torch.zeros(16, 32)), r"wrong shape: pos_embed is \(16, 32\), expected 3"),
    ],
)
def test_what_is_not_such_a_network(format, state, message):
    with pytest.raises(UserError, match=message):
        convert_state_dict(format, state, {"encoder_depth": 1}, num_heads=2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"path_type": "cosine"}, "path 'cosine'"),
        ({"path_type": "GVP"}, "path 'GVP'"),
        ({"prediction": "score"}, "predicts 'score'"),
        ({"num_classes": 6}, "without a null class"),
        ({"encoder_depth": 3}, "encoder_depth is 3, the model has 2 blocks"),
    ],
)
def test_training_arguments_that_are_not_ours(args, message):
    with pytest.raises(UserError, match=message):
        convert_state_dict("repa", random_state("repa"), args, num_heads=2)


def test_heads_follow_from_the_width():
    with pytest.raises(UserError, match=r"a width of 32 .* \(384, 768, 1024, 1152\): give num_heads"):
        convert_state_dict("sit", random_state("sit"))
    with pytest.raises(UserError, match="not a multiple of num_heads 3"):
        convert_state_dict("sit", random_state("sit"), num_heads=3)
    assert convert_state_dict("sit", random_state("sit", hidden_size=384, depth=1)).config["num_heads"] == 6


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(prefix):
    state = random_state("mmgen")
    plain = convert_state_dict("mmgen", state, {"encoder_depth": 1}, num_heads=2)
    wrapped = {prefix + key: tensor for key, tensor in state.items()}
    found = convert_state_dict("mmgen", wrapped, {"encoder_depth": 1}, num_heads=2)
    assert found.config == plain.config
    assert found.state_dict.keys() == plain.state_dict.keys()
    assert all(torch.equal(found.state_dict[key], plain.state_dict[key]) for key in plain.state_dict)
    with pytest.raises(UserError, match="with and without the prefixes"):
        convert_state_dict("mmgen", state | wrapped, {"encoder_depth": 1}, num_heads=2)


def test_blocks_in_two_parts_as_in_repas_first_release():
    state = random_state("repa", depth=3)
    plain = convert_state_dict("repa", state, {"encoder_depth": 1}, num_heads=2)
    parts = {
        key if number == "0" else f"decoder_blocks.{int(number) - 1}.{name}": tensor
        for key, tensor in state.items()
        if key.startswith("blocks.")
        for number, name in [key.split(".", 2)[1:]]
    } | {key: tensor for key, tensor in state.items() if not key.startswith("blocks.")}
    found = convert_state_dict("repa", parts, num_heads=2)  # a state dict alone says no encoder_depth; the parts do
    assert found.config == plain.config
    assert found.config["alignment_depth"] == 1
    assert all(torch.equal(found.state_dict[key], plain.state_dict[key]) for key in plain.state_dict)
    parts["decoder_blocks.7.attn.qkv.bias"] = parts.pop("decoder_blocks.1.attn.qkv.bias")
    with pytest.raises(UserError, match="missing keys"):
        convert_state_dict("repa", parts, num_heads=2)
