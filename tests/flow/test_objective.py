from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.objective import OBJECTIVES, FlowDraw, FlowObjective, ObjectiveOutput, make_objective
from mmdit.flow.path import linear_path
from mmdit.flow.timesteps import Uniform
from mmdit.task import Role, TaskMixture

NAMES = ("rgb", "depth", "normal")
WEIGHTS = {"rgb": 1.0, "depth": 0.2, "normal": 0.1}
PROMPT = Conditioning(torch.zeros(1, 1))
G, C, U, A = Role.GENERATE, Role.CONDITION, Role.UNSUPERVISED, Role.ABSENT


def objective(prediction: str = "velocity", mixture: str = "mmgen") -> FlowObjective:
    return FlowObjective(
        mixture=TaskMixture(mixture, NAMES), timesteps=Uniform(), loss_weights=WEIGHTS, prediction=prediction
    )


@dataclass
class Output:
    """What a network returns."""

    sample: Tensor


def zeros(x_t: Tensor, *rest: Any) -> Output:
    return Output(torch.zeros_like(x_t))


def draw_of(roles: list[list[int]], t: list[float], noise: Tensor) -> FlowDraw:
    return FlowDraw(torch.tensor(roles), torch.tensor(t), torch.full((len(t),), 0.004), noise)


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 2, 2, generator=generator), torch.randn(2, 3, 4, 2, 2, generator=generator)


def test_velocity_loss_by_hand(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    draw = draw_of([[G, C, G], [G, U, A]], [0.3, 0.6], noise)
    losses = objective()(zeros, clean, PROMPT, draw).losses
    squared = (noise - clean).square().mean((2, 3, 4))  # the error of an output of zeros
    rgb = (squared[0, 0] + squared[1, 0]) / 2
    normal = squared[0, 2]
    torch.testing.assert_close(losses["loss/rgb"], rgb)
    assert losses["loss/depth"] == 0  # nobody supervises it
    torch.testing.assert_close(losses["loss/normal"], normal)
    torch.testing.assert_close(losses["loss"], rgb + 0.1 * normal)


def test_clean_prediction_loss_by_hand(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    draw = draw_of([[G, C, G], [U, G, G]], [0.05, 0.5], noise)
    losses = objective("sample")(zeros, clean, PROMPT, draw).losses
    squared = clean.square().mean((2, 3, 4))
    torch.testing.assert_close(losses["loss/rgb"], squared[0, 0] * 10)
    torch.testing.assert_close(losses["loss/depth"], squared[1, 1] * 2)
    torch.testing.assert_close(losses["loss/normal"], (squared[0, 2] * 10 + squared[1, 2] * 2) / 2)


def test_the_network_sees_each_modality_as_its_role_says(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    roles = [[G, C, A], [C, U, G]]
    seen: dict[str, Tensor] = {}

    def network(x_t: Tensor, timesteps: Tensor, roles: Tensor, conditioning: Conditioning) -> Output:
        seen.update(x_t=x_t, timesteps=timesteps, roles=roles)
        return Output(x_t)

    step = objective()(network, clean, PROMPT, draw_of(roles, [0.3, 0.6], noise))
    assert step.network_output.sample is seen["x_t"]  # may be used further, as by the alignment loss
    expected = torch.tensor([[0.3, 0.004, 1.0], [0.004, 0.6, 0.6]])
    torch.testing.assert_close(seen["timesteps"], expected)
    t = expected[:, :, None, None, None]
    torch.testing.assert_close(seen["x_t"], (1 - t) * clean + t * noise)
    assert torch.equal(seen["x_t"][0, 2], noise[0, 2])  # ABSENT: pure noise, whatever the data holds
    assert seen["roles"].tolist() == roles


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_a_perfect_network_has_no_loss(prediction: str, latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    target = noise - clean if prediction == "velocity" else clean
    draw = draw_of([[G, G, G], [G, C, U]], [0.3, 0.6], noise)
    assert objective(prediction)(lambda *inputs: Output(target), clean, PROMPT, draw).losses["loss"] == 0


def test_half_precision_outputs_are_compared_in_float32(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = (300 * x for x in latents)  # squares beyond float16
    draw = draw_of([[G, G, G]] * 2, [0.5, 0.5], noise)
    half = lambda x_t, *rest: Output(torch.zeros_like(x_t, dtype=torch.float16))  # noqa: E731
    loss = objective()(half, clean, PROMPT, draw).losses["loss"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_draw_is_reproducible_and_covers_its_ranges() -> None:
    first = objective().draw(512, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    second = objective().draw(512, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(first.roles, second.roles)
    assert 0 <= first.condition_t.min() < 0.001
    assert 0.009 < first.condition_t.max() <= 0.01
    assert first.t.min() < 0.02
    assert first.t.max() > 0.98
    assert abs(first.noise.mean()) < 0.05
    assert abs(first.noise.std() - 1) < 0.05


def test_shards_are_the_rows_of_the_whole_draw_and_average_to_its_loss() -> None:
    clean = torch.randn(6, 3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    flow = objective(mixture="any_to_any")
    draw = flow.draw(6, (3, 4, 2, 2), torch.Generator().manual_seed(0))
    shards = [draw.shard(rank, 2) for rank in range(2)]
    assert torch.equal(shards[1].noise, draw.noise[1::2])
    assert torch.equal(shards[1].timesteps, draw.timesteps[1::2])

    whole = flow(zeros, clean, PROMPT, draw).losses["loss"]
    counts = (draw.roles == G).sum(0) / 2  # mean over the two processes
    parts = [flow(zeros, clean[rank::2], PROMPT, shards[rank], lambda _: counts).losses["loss"] for rank in range(2)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_missing_data_is_absent() -> None:
    draw = draw_of([[G, G, C], [G, G, G]], [0.5, 0.5], torch.zeros(2, 3, 1, 1, 1))
    draw = draw.without_missing(torch.tensor([[True, False, True], [True, True, True]]))
    assert draw.roles.tolist() == [[G, A, C], [G, G, G]]
    assert draw.to("cpu").timesteps[0].tolist() == pytest.approx([0.5, 1.0, 0.004])


def test_pure_noise_share_moves_conditioned_samples_to_t_1() -> None:
    mixture = TaskMixture("any_to_any", NAMES)
    plain = FlowObjective(mixture=mixture, timesteps=Uniform(), loss_weights=WEIGHTS).draw(
        512, (3, 1, 2, 2), torch.Generator().manual_seed(0)
    )
    flow = FlowObjective(mixture=mixture, timesteps=Uniform(), loss_weights=WEIGHTS, pure_noise_share=0.4)
    draw = flow.draw(512, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    assert torch.equal(draw.noise, plain.noise)
    conditioned = (draw.roles == C).any(dim=1)
    assert torch.equal(draw.t[~conditioned], plain.t[~conditioned])
    moved = draw.t[conditioned] != plain.t[conditioned]
    assert (draw.t[conditioned][moved] == 1).all()
    assert abs(moved.float().mean() - 0.4) < 0.1
    assert (draw.timesteps[draw.roles == C] <= 0.01).all()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_pure_noise_share_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match="from 0 to 1"):
        FlowObjective(
            mixture=TaskMixture("mmgen", NAMES), timesteps=Uniform(), loss_weights=WEIGHTS, pure_noise_share=share
        )


def test_what_is_known_is_in_no_loss(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    known = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    known[0, 0, 0] = True  # the upper half of one sample's RGB
    known[1, 1] = True  # all of another's depth
    draw = replace(draw_of([[G, G, C], [G, G, G]], [0.3, 0.6], noise), known=known)
    seen: list[Tensor] = []

    def network(x_t: Tensor, *rest: Any) -> Output:
        seen.append(x_t)
        return zeros(x_t)

    losses = objective()(network, clean, PROMPT, draw).losses
    squared = (noise - clean).square()
    rgb = (squared[0, 0, :, 1].mean() + squared[1, 0].mean()) / 2
    torch.testing.assert_close(losses["loss/rgb"], rgb)
    torch.testing.assert_close(losses["loss/depth"], squared[0, 1].mean())  # the other sample supervises nothing
    torch.testing.assert_close(losses["loss/normal"], squared[1, 2].mean())
    torch.testing.assert_close(losses["loss"], rgb + 0.2 * squared[0, 1].mean() + 0.1 * squared[1, 2].mean())
    torch.testing.assert_close(seen[0][0, 0], 0.7 * clean[0, 0] + 0.3 * noise[0, 0])  # known or not: on the path at t

    nothing = replace(draw, known=torch.zeros_like(known))
    torch.testing.assert_close(
        objective()(zeros, clean, PROMPT, nothing).losses["loss"],
        objective()(zeros, clean, PROMPT, replace(draw, known=None)).losses["loss"],
    )
    assert torch.equal(draw.shard(1, 2).to("cpu").known, known[1:])  # type: ignore[arg-type]


def test_a_seed_draws_the_same_step_in_every_version() -> None:
    """The order of the draws: roles, t, t_c, noise, the posterior's noise, whether the prompt is dropped."""
    draw = objective(mixture="any_to_any").draw(4, (3, 1, 2, 2), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(draw.roles, TaskMixture("any_to_any", NAMES)(4, generator))
    assert torch.equal(draw.t, torch.rand(4, generator=generator))
    assert torch.equal(draw.condition_t, torch.rand(4, generator=generator) * 0.01)
    assert torch.equal(draw.noise, torch.randn(4, 3, 1, 2, 2, generator=generator))
    assert torch.equal(draw.posterior_noise, torch.randn(4, 3, 1, 2, 2, generator=generator))  # type: ignore[arg-type]
    assert torch.equal(draw.prompt_draw, torch.rand(4, generator=generator))  # type: ignore[arg-type]
    assert draw.known is None


class TwoTimes(FlowObjective):
    """A flow map's loss, as short as can be: the step from t to half of it, at its target."""

    def __init__(self, *, ratio: float, **common: Any) -> None:
        super().__init__(**common)
        self.ratio = ratio

    def __call__(self, network: Any, clean: Tensor, conditioning: Conditioning, draw: FlowDraw, *_: Any) -> Any:
        path = linear_path(clean, draw.noise, draw.timesteps)
        output = network(path.x_t, path.timesteps, draw.roles, conditioning, timesteps_next=self.ratio * path.timesteps)
        loss = (output.sample - path.velocity).square().mean()
        return ObjectiveOutput({"loss": loss}, output)


def test_another_objective_is_one_class_and_one_entry(
    monkeypatch: pytest.MonkeyPatch, latents: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setitem(OBJECTIVES, "two_times", TwoTimes)
    common = {"mixture": TaskMixture("mmgen", NAMES), "timesteps": Uniform(), "loss_weights": WEIGHTS}
    chosen = make_objective("two_times", settings={"ratio": 0.5}, **common)
    seen: dict[str, Any] = {}

    def network(x_t: Tensor, timesteps: Tensor, *rest: Any, timesteps_next: Tensor | None = None) -> Output:
        seen.update(t=timesteps, r=timesteps_next)
        return zeros(x_t)

    clean, noise = latents
    losses = chosen(network, clean, PROMPT, draw_of([[G] * 3] * 2, [0.4, 0.8], noise)).losses
    torch.testing.assert_close(losses["loss"], (noise - clean).square().mean())
    assert torch.equal(seen["r"], 0.5 * seen["t"])
    with pytest.raises(UserError, match="unknown objective 'flows': did you mean 'flow'"):
        make_objective("flows", **common)
    with pytest.raises(UserError, match=r"objective 'flow' does not take the settings \{'ratio': 0.5\}"):
        make_objective("flow", settings={"ratio": 0.5}, **common)
