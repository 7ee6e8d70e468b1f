from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.objective import FlowDraw, FlowObjective
from mmdit.flow.timesteps import Uniform
from mmdit.task import Role, TaskMixture

NAMES = ("rgb", "depth", "normal")
WEIGHTS = {"rgb": 1.0, "depth": 0.2, "normal": 0.1}
PROMPT = Conditioning(torch.zeros(1, 1))
G, C, U, A = Role.GENERATE, Role.CONDITION, Role.UNSUPERVISED, Role.ABSENT


def objective(prediction: str = "velocity", mixture: str = "mmgen") -> FlowObjective:
    return FlowObjective(TaskMixture(mixture, NAMES), Uniform(), WEIGHTS, prediction)


def zeros(x_t: Tensor, timesteps: Tensor, roles: Tensor, conditioning: Conditioning) -> Tensor:
    return torch.zeros_like(x_t)


def draw_of(roles: list[list[int]], t: list[float], noise: Tensor) -> FlowDraw:
    return FlowDraw(torch.tensor(roles), torch.tensor(t), torch.full((len(t),), 0.004), noise)


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 2, 2, generator=generator), torch.randn(2, 3, 4, 2, 2, generator=generator)


def test_velocity_loss_by_hand(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    draw = draw_of([[G, C, G], [G, U, A]], [0.3, 0.6], noise)
    losses = objective()(zeros, clean, PROMPT, draw)
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
    losses = objective("sample")(zeros, clean, PROMPT, draw)
    squared = clean.square().mean((2, 3, 4))
    torch.testing.assert_close(losses["loss/rgb"], squared[0, 0] * 10)
    torch.testing.assert_close(losses["loss/depth"], squared[1, 1] * 2)
    torch.testing.assert_close(losses["loss/normal"], (squared[0, 2] * 10 + squared[1, 2] * 2) / 2)


def test_the_network_sees_each_modality_as_its_role_says(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = latents
    roles = [[G, C, A], [C, U, G]]
    seen: dict[str, Tensor] = {}

    def network(x_t: Tensor, timesteps: Tensor, roles: Tensor, conditioning: Conditioning) -> Tensor:
        seen.update(x_t=x_t, timesteps=timesteps, roles=roles)
        return x_t

    objective()(network, clean, PROMPT, draw_of(roles, [0.3, 0.6], noise))
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
    assert objective(prediction)(lambda *inputs: target, clean, PROMPT, draw)["loss"] == 0


def test_half_precision_outputs_are_compared_in_float32(latents: tuple[Tensor, Tensor]) -> None:
    clean, noise = (300 * x for x in latents)  # squares beyond float16
    draw = draw_of([[G, G, G]] * 2, [0.5, 0.5], noise)
    loss = objective()(lambda x_t, *rest: torch.zeros_like(x_t, dtype=torch.float16), clean, PROMPT, draw)["loss"]
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

    whole = flow(zeros, clean, PROMPT, draw)["loss"]
    counts = (draw.roles == G).sum(0) / 2  # mean over the two processes
    parts = [flow(zeros, clean[rank::2], PROMPT, shards[rank], lambda _: counts)["loss"] for rank in range(2)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_missing_data_is_absent() -> None:
    draw = draw_of([[G, G, C], [G, G, G]], [0.5, 0.5], torch.zeros(2, 3, 1, 1, 1))
    draw = draw.without_missing(torch.tensor([[True, False, True], [True, True, True]]))
    assert draw.roles.tolist() == [[G, A, C], [G, G, G]]
    assert draw.to("cpu").timesteps[0].tolist() == pytest.approx([0.5, 1.0, 0.004])


def test_pure_noise_share_moves_conditioned_samples_to_t_1() -> None:
    mixture = TaskMixture("any_to_any", NAMES)
    plain = FlowObjective(mixture, Uniform(), WEIGHTS).draw(512, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    flow = FlowObjective(mixture, Uniform(), WEIGHTS, pure_noise_share=0.4)
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
        FlowObjective(TaskMixture("mmgen", NAMES), Uniform(), WEIGHTS, pure_noise_share=share)
