from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.models.widen import start_from
from mmdit.task import Role

ALL = ["rgb", "depth", "normal", "segmentation"]
MakeModel = Callable[..., MultimodalDiT]


def outputs(model: MultimodalDiT, names: list[str], num_samples: int = 3) -> Tensor:
    """Output for random latents, timesteps and roles, which are the same for a modality in every model."""
    generator = torch.Generator().manual_seed(3)
    latents = {name: torch.randn(num_samples, 4, 8, 8, generator=generator) for name in ALL}
    times = {name: torch.rand(num_samples, generator=generator) for name in ALL}
    roles = {name: torch.randint(len(Role), (num_samples,), generator=generator) for name in ALL}
    return model(
        torch.stack([latents[name] for name in names], 1),
        torch.stack([times[name] for name in names], 1),
        torch.stack([roles[name] for name in names], 1),
        model.conditioner([0, None, 3]),
    ).sample


@pytest.mark.parametrize("time_embedding", ["fused", "sum"])
@pytest.mark.parametrize(("few", "many"), [(["rgb"], ALL), (["depth", "rgb"], ["rgb", "normal", "depth"])])
def test_starts_as_the_smaller_model(make_model: MakeModel, few: list[str], many: list[str], time_embedding: str):
    trained = make_model(modalities=few, time_embedding=time_embedding)
    network = make_model(modalities=many, time_embedding=time_embedding)  # random everywhere, so zeros must be set
    start_from(network, trained)
    with torch.no_grad():
        expected, out = outputs(trained, few), outputs(network, many)
    own = [many.index(name) for name in few]
    new = [i for i in range(len(many)) if i not in own]
    assert (out[:, own] - expected).abs().max() < 1e-6 * expected.abs().max()
    assert (out[:, new] == 0).all()


@pytest.mark.parametrize("time_embedding", ["fused", "sum"])
def test_what_begins_at_zero_learns(make_model: MakeModel, time_embedding: str):
    network = make_model(modalities=["rgb", "depth"], time_embedding=time_embedding)
    start_from(network, make_model(modalities=["rgb"], time_embedding=time_embedding))
    (outputs(network, ["rgb", "depth"]) - 1).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    of_depth = {
        "patch embedding": gradients["patch_embed.proj.weight"].unflatten(1, (2, -1))[:, 1],
        "role": gradients["role_embed.table"][1],
        "head": gradients["head.linears.1.weight"],
        "time": gradients["time_embed.fuse.0.weight"].unflatten(1, (2, -1))[:, 1]
        if time_embedding == "fused"
        else gradients["time_embed.mlps.1.2.weight"],
    }
    for name, gradient in of_depth.items():
        assert gradient.abs().max() > 0, name


def test_other_classes_begin_as_none(make_model: MakeModel):
    trained, network = make_model(modalities=["rgb"]), make_model(num_classes=3)
    start_from(network, trained)
    table = network.conditioner.embedding_table.weight
    assert (table == trained.conditioner.embedding_table.weight[-1]).all()


def test_projector_is_copied_where_it_fits(make_model: MakeModel):
    projector = {"alignment_depth": 1, "alignment_dim": 6, "alignment_hidden_size": 8}
    trained = make_model(modalities=["rgb"], **projector)
    network = make_model(**projector)
    with torch.no_grad():
        network.projector.layers[0].weight.zero_()
    start_from(network, trained)
    assert torch.equal(network.projector.layers[0].weight, trained.projector.layers[0].weight)

    other = make_model(**(projector | {"alignment_dim": 5}))
    before = other.projector.layers[4].weight.clone()
    start_from(other, trained)
    assert torch.equal(other.projector.layers[4].weight, before)
    start_from(make_model(), trained)  # without one


def test_a_block_that_extends_the_trained_one_begins_as_it(make_model: MakeModel):
    trained, network = make_model(modalities=["rgb", "depth"]), make_model(block="cross")
    start_from(network, trained)
    rows = [0, 1]
    with torch.no_grad():
        expected, out = outputs(trained, ["rgb", "depth"]), outputs(network, ALL)
    assert (out[:, rows] - expected).abs().max() < 1e-6 * expected.abs().max()
    again = make_model(block="cross")
    start_from(again, network)  # trained cross-attention is kept
    assert torch.equal(again.blocks[0].cross.q.weight, network.blocks[0].cross.q.weight)
    with pytest.raises(
        UserError, match="block is 'cross' in the trained model and 'dit' here, which does not extend it"
    ):
        start_from(make_model(), network)


@pytest.mark.parametrize("time_embedding", ["fused", "sum"])
def test_a_second_time_begins_as_nothing(make_model: MakeModel, time_embedding: str):
    trained = make_model(modalities=["rgb"], time_embedding=time_embedding)
    network = make_model(modalities=["rgb"], time_embedding=time_embedding, second_time=True)
    start_from(network, trained)
    assert network.next_time_embed is not None
    assert (network.next_time_embed(torch.rand(2, 1)) == 0).all()
    flow_map = make_model(modalities=["rgb"], time_embedding=time_embedding, second_time=True)
    wider = make_model(modalities=["depth", "rgb"], time_embedding=time_embedding, second_time=True)
    start_from(wider, flow_map)  # the second time of modalities that are new adds nothing
    t = torch.rand(3, 2)
    assert wider.next_time_embed is not None
    assert flow_map.next_time_embed is not None
    torch.testing.assert_close(wider.next_time_embed(t), flow_map.next_time_embed(t[:, 1:]), atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="second_time is true in the trained model and false here"):
        start_from(trained, flow_map)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embedding": "sum"}, "time_embedding is 'fused' in the trained model and 'sum' here"),
        ({"num_heads": 4}, "num_heads is 2 in the trained model and 4 here"),
        ({"depth": 1}, "depth is 2"),
        ({"prediction": "sample"}, "prediction is 'velocity'"),
        ({"modalities": ["rgb"]}, "the trained model has depth, this one only rgb"),
    ],
)
def test_other_networks_are_refused(make_model: MakeModel, changes: dict[str, Any], message: str):
    trained = make_model(modalities=["rgb", "depth"])
    with pytest.raises(UserError, match=message):
        start_from(make_model(**changes), trained)


def test_a_head_on_a_middle_block_is_carried_over_where_both_have_one(make_model: MakeModel) -> None:
    trained = make_model(modalities=["rgb"], internal_guidance_depth=1)
    network, without = (
        make_model(modalities=["depth", "rgb"], internal_guidance_depth=1),
        make_model(modalities=["rgb"]),
    )
    start_from(network, trained)
    ours, theirs = network.internal_head, trained.internal_head
    assert torch.equal(ours.linears[1].weight, theirs.linears[0].weight)
    assert torch.equal(ours.norms[1].modulation[1].bias, theirs.norms[0].modulation[1].bias)
    assert not ours.linears[0].weight.any()
    start_from(without, trained)  # it has none to take it over
    torch.testing.assert_close(outputs(without, ["rgb"]), outputs(trained, ["rgb"]))


def test_a_head_behind_another_block_begins_anew(make_model: MakeModel) -> None:
    """What it read there is not what it reads here."""
    trained, network = (make_model(modalities=["rgb"], depth=3, internal_guidance_depth=behind) for behind in (1, 2))
    before = {name: value.clone() for name, value in network.internal_head.state_dict().items()}
    start_from(network, trained)
    assert all(torch.equal(value, before[name]) for name, value in network.internal_head.state_dict().items())
    torch.testing.assert_close(outputs(network, ["rgb"]), outputs(trained, ["rgb"]))
