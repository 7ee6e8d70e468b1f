"""Routing of tokens in training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmdit.errors import UserError
from mmdit.models.routing import Route
from mmdit.training.config import AlignmentConfig, ModelConfig, RoutingConfig, TrainingConfig
from mmdit.training.recipes import build_run
from mmdit.training.routing import TokenRouting, token_routing

Configure = Callable[..., TrainingConfig]


def four_blocks(**settings: Any) -> dict[str, Any]:
    return {"model": ModelConfig(size="debug", depth=4), "routing": RoutingConfig(first=2, **settings)}


def routes_of(module: Any) -> list[Route | None]:
    """The routes that the network gets, in a list that grows."""
    routes: list[Route | None] = []
    module.network.register_forward_pre_hook(
        lambda network, args, kwargs: routes.append(kwargs.get("route")), with_kwargs=True
    )
    return routes


def test_a_share_of_the_tokens_is_drawn_anew_for_each_sample() -> None:
    routing = TokenRouting(share=0.4, first=2, last=3)
    kept = routing.draw(500, 16, torch.Generator().manual_seed(0))
    assert kept.shape == (500, 10)  # 6 of 16 skip, 0.4 rounded down
    assert (kept.diff(dim=1) > 0).all()
    counts = torch.bincount(kept.flatten(), minlength=16) / 500
    assert (counts - 10 / 16).abs().max() < 0.1
    assert torch.equal(kept, routing.draw(500, 16, torch.Generator().manual_seed(0)))
    assert len({tuple(row) for row in kept.tolist()}) > 450


def test_a_step_routes_in_training_alone_and_draws_the_rest_as_before(tiny_config: Configure) -> None:
    run = build_run(tiny_config(**four_blocks()))
    module, batch = run.module, next(iter(run.data.train_dataloader()))
    plain = build_run(tiny_config(model=ModelConfig(size="debug", depth=4))).module
    plain.network.load_state_dict(module.network.state_dict())
    routes = routes_of(module)
    noisy: list[torch.Tensor] = []
    for each in (module, plain):
        each.network.patch_embed.register_forward_pre_hook(lambda layer, args: noisy.append(args[0]))
        each.train().losses(batch, torch.Generator().manual_seed(5))
    assert torch.equal(noisy[0], noisy[1])
    (route,) = routes
    assert (route.first, route.last, route.kept.shape) == (2, 3, (4, 8))
    losses = [each.eval().losses(batch, torch.Generator().manual_seed(5)) for each in (module, plain)]
    assert routes[1] is None
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[1])


def test_processes_share_the_draws_of_one(tiny_config: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run(tiny_config(**four_blocks(share=0.75)))
    module, batch = run.module.train(), next(iter(run.data.train_dataloader()))
    routes = routes_of(module)
    module.losses(batch, torch.Generator().manual_seed(5))
    for rank in range(2):
        own = {name: values[rank::2] for name, values in batch.items()}
        monkeypatch.setattr(module, "_processes", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(module, "_mean_over_processes", lambda counts: counts)
        module.losses(own, torch.Generator().manual_seed(5))
    assert torch.equal(routes[1].kept, routes[0].kept[0::2])
    assert torch.equal(routes[2].kept, routes[0].kept[1::2])


@pytest.mark.parametrize("teacher", [None, "latents"])
def test_alignment_is_of_the_tokens_that_go_through(tiny_config: Configure, teacher: str | None) -> None:
    alignment = AlignmentConfig(depth=2, hidden_size=16, teacher=teacher, distance="smooth_l1")
    run = build_run(tiny_config(**four_blocks(), alignment=alignment))
    module, batch = run.module.train(), next(iter(run.data.train_dataloader()))
    routes, projected = routes_of(module), []
    module.network.projector.register_forward_hook(lambda layer, args, output: projected.append(output))
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    (route,) = routes
    assert projected[0].shape[1] == 8
    clean = module.codec.latents_all(batch["moments"].float())
    errors = []
    for i, own in enumerate(route.kept.tolist()):
        for row, token in enumerate(own):
            y, x = 2 * (token // 4), 2 * (token % 4)
            patch = clean[i, :, :, y : y + 2, x : x + 2].flatten()  # (M C p p)
            target = batch["features"][i, token] if teacher is None else patch
            d = (projected[0][i, row] - target).abs()
            errors.append(torch.where(d < 0.05, d.square() / 0.1, d - 0.025).mean())
    torch.testing.assert_close(losses["alignment"], torch.stack(errors).mean())
    losses["loss"].backward()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"routing": RoutingConfig(first=3, last=2)}, "blocks 3 to 2 of 4: give first and last in order, at most 4"),
        ({"routing": RoutingConfig(first=1, last=5)}, "blocks 1 to 5 of 4"),
        ({"routing": RoutingConfig(first=3)}, "blocks 3 to 2 of 4"),
        ({"routing": RoutingConfig(first=2, share=1.0)}, "routing.share is 1: give a share between 0 and 1"),
        ({"routing": RoutingConfig(first=2, share=0.05)}, "routing.share is 0.05 of 16 tokens, less than one"),
        (
            {"model": ModelConfig(size="debug", depth=4, internal_guidance_depth=2)},
            "model.internal_guidance_depth is 2, in the span of routing, blocks 2 to 3: its head needs all tokens",
        ),
        ({"alignment": AlignmentConfig(depth=2, projector="conv")}, "alignment.depth is 2, in the span"),
    ],
)
def test_what_does_not_go_with_it_is_named(tiny_config: Configure, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_run(tiny_config(**(four_blocks() | sections)))


def test_attention_losses_look_at_blocks_that_all_tokens_pass(tiny_config: Configure) -> None:
    config = tiny_config(**four_blocks(), alignment=None)
    network = build_run(config).module.network
    assert token_routing(config, network, [1, 4]) == TokenRouting(0.5, 2, 3)
    with pytest.raises(UserError, match=r"prompts.attention_blocks has 3, in the span of routing, blocks 2 to 3"):
        token_routing(config, network, [1, 3])
