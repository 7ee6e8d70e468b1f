"""The loss that teaches what a style's picture means, computed by hand, and that it is learned."""

from __future__ import annotations

import copy

import pytest
import torch

from mmdit.conditioning import EncodedPrompts
from mmdit.models.prompted import PromptInputs
from mmdit.models.tiue import TIUEConditioner
from mmdit.training.styles import StyleObjective

L, W, P, D = 4, 12, 6, 16


@pytest.fixture
def conditioner() -> TIUEConditioner:
    torch.manual_seed(0)
    made = TIUEConditioner(3, D, text_width=W, image_width=P, refiner_depth=2)
    made.reset_parameters()
    return made


def encoded(words: torch.Tensor, pictures: torch.Tensor, subjects: list[list[int]], length: int = L) -> EncodedPrompts:
    """Prompts of a text encoder that returns its words, those of subjects in place of the words."""
    numbers = torch.tensor(subjects)

    def restate(pseudo: torch.Tensor) -> torch.Tensor:
        return torch.where((numbers >= 0)[..., None], pseudo[numbers.clamp_min(0)], words)

    mask = (torch.arange(L) < length).expand(len(words), -1)
    return EncodedPrompts(words, mask, numbers, pictures, restate, torch.ones(len(words), dtype=torch.bool))


def batch(seed: int, count: int = 8) -> tuple[EncodedPrompts, EncodedPrompts, EncodedPrompts]:
    """Kept, styled and told: a scene's embedding holds what its floor's and wall's say, in halves."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randn(1, L, W, generator=torch.Generator().manual_seed(9)).expand(count, -1, -1)
    halves = torch.randn(count, 2, P // 2, generator=draw)
    squares = torch.cat([halves, torch.zeros_like(halves)], dim=2).flatten(0, 1)
    scenes = [[-1, -1, -1, i] for i in range(count)]
    grounds = [[-1, 2 * i, -1, 2 * i + 1] for i in range(count)]
    plain = [[-1] * L] * count
    return (
        encoded(torch.randn(count, L, W, generator=draw), torch.zeros(0, P), plain, length=3),
        encoded(words, halves.flatten(1), scenes),
        encoded(words, squares, grounds),
    )


def test_loss_by_hand(conditioner):
    objective = StyleObjective(conditioner, kept_weight=3.0, attention_weight=0.5)
    before = copy.deepcopy(conditioner)
    with torch.no_grad():
        for weight in conditioner.token_proj.parameters():
            weight.mul_(1.2)
    kept, styled, told = batch(1)
    losses = objective(conditioner, kept, styled, told)

    def rows(model: TIUEConditioner, given: EncodedPrompts) -> torch.Tensor:
        out = model(PromptInputs(torch.full((len(given.states),), -1), given))
        return torch.cat([row[: int(mask.sum())] for row, mask in zip(out.tokens, given.mask, strict=True)])

    targets = rows(before, kept)
    assert len(targets) == 8 * 3, "padding doesn't count"
    scale = (targets - targets.mean(0)).square().sum(0).div(len(targets) - 1).mean()
    torch.testing.assert_close(losses["kept"], (rows(conditioner, kept) - targets).square().mean() / scale)
    style = (rows(conditioner, styled) - rows(before, told)).square().mean() / scale
    torch.testing.assert_close(losses["style"], style)
    # Of four words the second comes to tell a picture, and the last has one.
    layer = conditioner.refiner.layers[0]
    tokens = layer.attn_norm(conditioner.token_proj(conditioner.token_norm(conditioner.states(styled))))
    q, (k, _) = layer.attn.q(tokens)[:, 1], layer.attn.kv(tokens).chunk(2, dim=-1)
    assert layer.attn.num_heads == 1
    read = ((k @ q[:, :, None])[..., 0] / D**0.5).softmax(dim=1)[:, 3]
    torch.testing.assert_close(losses["attention"], -read.log().mean())
    torch.testing.assert_close(losses["loss"], style + 3 * losses["kept"] + 0.5 * losses["attention"])


def test_a_batch_without_styles_only_stays_as_it_is(conditioner):
    objective = StyleObjective(conditioner)
    losses = {name: float(value.detach()) for name, value in objective(conditioner, batch(1)[0]).items()}
    assert losses == {"loss": 0, "kept": 0, "style": 0, "attention": 0}


def test_styles_are_learned_and_all_else_stays(conditioner):
    objective = StyleObjective(conditioner)
    conditioner.pseudo_word.requires_grad_(False)
    trained = [weight for part in (conditioner.token_proj, conditioner.refiner) for weight in part.parameters()]

    @torch.no_grad()
    def measured() -> dict[str, float]:
        return {name: float(value) for name, value in objective(conditioner, *batch(10_000, 64)).items()}

    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0)
    first = measured()
    for step in range(300):
        optimizer.zero_grad()
        objective(conditioner, *batch(step, 32))["loss"].backward()
        optimizer.step()
    last = measured()
    assert last["style"] < 0.25 * first["style"]
    assert last["kept"] < 0.05
