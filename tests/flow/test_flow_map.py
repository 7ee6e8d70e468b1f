from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flow_maps import PROMPT, GaussianMap, Output, Wave
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.flow_map import MIN_JUMP_TIME, FlowMapObjective
from mmdit.flow.flow_matching import FlowDraw, FlowObjective
from mmdit.flow.mean_flow import MeanFlowObjective
from mmdit.flow.objective import make_objective
from mmdit.flow.path import linear_path
from mmdit.flow.solution_flow import SolutionFlowObjective
from mmdit.flow.timesteps import Uniform
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import Role, TaskMixture

NAMES = ("rgb", "depth", "normal")
WEIGHTS = {"rgb": 1.0, "depth": 0.2, "normal": 0.1}
G, C, U, A = Role.GENERATE, Role.CONDITION, Role.UNSUPERVISED, Role.ABSENT
ROLES = [[G, G, G], [G, C, U], [A, G, G], [C, G, G], [G, G, A], [G, G, C]]
BOTH = ["solution_flow", "mean_flow"]


def common(mixture: Any = "any_to_any", prediction: str = "velocity") -> dict[str, Any]:
    return {
        "mixture": TaskMixture(mixture, NAMES), "timesteps": Uniform(), "loss_weights": WEIGHTS, "prediction": prediction
    }  # fmt: skip


def objective(
    name: str, mixture: Any = "any_to_any", prediction: str = "velocity", **settings: Any
) -> FlowMapObjective:
    made = make_objective(name, settings=settings, **common(mixture, prediction))
    assert isinstance(made, FlowMapObjective)
    return made


def some_draw(size: int = len(ROLES), dtype: torch.dtype = torch.float32) -> tuple[Tensor, FlowDraw]:
    """Clean latents and a draw with the roles above, in which every second sample steps."""
    generator = torch.Generator().manual_seed(3)
    clean, noise = (torch.randn(size, 3, 2, 2, 2, generator=generator, dtype=dtype) for _ in range(2))
    t = 0.3 + 0.7 * torch.rand(size, generator=generator, dtype=dtype)
    stepping = torch.arange(size) % 2 == 0
    next_t = torch.where(stepping, t * torch.rand(size, generator=generator, dtype=dtype), t)
    roles = torch.tensor(ROLES)[torch.arange(size) % len(ROLES)]
    return clean, FlowDraw(roles, t, torch.full((size,), 0.004, dtype=dtype), noise, next_t=next_t, progress=0.5)


def test_solution_consistency_by_hand() -> None:
    """||f(x_t, t, s) - f(x_l, l, s)||² / ((t - l) (t - s)) in terms of the end points (SoFlow); flow matching elsewhere."""
    clean, draw = some_draw()
    network = Wave()
    flow = objective("solution_flow", adaptive_power=0.0, first_ratio=0.3, last_ratio=0.3)
    losses = flow(network, clean, PROMPT, draw).losses

    def shown(b: int, m: int, time: float) -> float:
        return {G: time, U: time, C: 0.004, A: 1.0}[Role(ROLES[b][m])]

    def ends(b: int, time: float, s: float) -> Tensor:  # f(x_time, time, s), (M, C, H, W)
        times, later = (torch.tensor([[shown(b, m, value) for m in range(3)]]) for value in (time, s))
        x = torch.stack([(1 - at) * clean[b, m] + at * draw.noise[b, m] for m, at in enumerate(times[0])])[None]
        u = network(x, times, draw.roles[b : b + 1], PROMPT, timesteps_next=later).sample
        return (x + (later - times)[:, :, None, None, None] * u)[0], u[0]

    sums = {"loss": torch.zeros(3), "jump": torch.zeros(3)}
    counts = {"loss": torch.zeros(3), "jump": torch.zeros(3)}
    assert draw.next_t is not None
    for b in range(len(ROLES)):
        t, s = float(draw.t[b]), float(draw.next_t[b])
        middle = t - 0.3 * (t - s)
        kind = "jump" if s < t else "loss"
        for m in range(3):
            if ROLES[b][m] != G:
                continue
            if kind == "jump":
                error = (ends(b, t, s)[0][m] - ends(b, middle, s)[0][m]).square().mean() / ((t - middle) * (t - s))
            else:
                error = (ends(b, t, s)[1][m] - (draw.noise - clean)[b, m]).square().mean()
            sums[kind][m] += error
            counts[kind][m] += 1
    for m, name in enumerate(NAMES):
        for kind in sums:
            torch.testing.assert_close(losses[f"{kind}/{name}"], sums[kind][m] / counts[kind][m], rtol=2e-4, atol=1e-5)
    whole = (sums["loss"] + sums["jump"]) / (counts["loss"] + counts["jump"])
    torch.testing.assert_close(losses["loss"], (whole * torch.tensor([1.0, 0.2, 0.1])).sum(), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_mean_flow_against_finite_differences(prediction: str) -> None:
    """v - (t - s) du/dt in float64, du/dt by central differences along the path of what moves."""
    clean, draw = some_draw(dtype=torch.float64)
    network, flow = Wave(), objective("mean_flow", prediction=prediction, adaptive_power=0.0)
    losses = flow(network, clean, PROMPT, draw).losses
    step = 1e-5
    s = draw.timesteps_next[:, :, None, None, None]

    def mean_velocity(delta: float) -> Tensor:
        times = replace(draw, t=draw.t + delta).timesteps
        path = linear_path(clean, draw.noise, times)
        output = network(path.x_t, times, draw.roles, PROMPT, timesteps_next=draw.timesteps_next).sample
        return output if prediction == "velocity" else (path.x_t - output) / times[:, :, None, None, None]

    slope = (mean_velocity(step) - mean_velocity(-step)) / (2 * step)
    t = draw.timesteps[:, :, None, None, None]
    target = draw.noise - clean - (t - s) * slope
    error = (mean_velocity(0.0) - target).square()
    if prediction == "sample":  # x̂ = x_t - t u, and the weight 1 / max(t, 0.1)
        error = error * t**2 / t.clamp_min(0.1)
    error, generated = error.mean((2, 3, 4)), draw.roles == G
    jumping = (draw.next_t < draw.t)[:, None] & generated  # type: ignore[operator]
    for m, name in enumerate(NAMES):
        torch.testing.assert_close(
            losses[f"jump/{name}"].double(), error[jumping[:, m], m].mean(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("name", BOTH)
def test_the_true_map_has_no_loss_where_the_path_is_the_flow(name: str, prediction: str) -> None:
    """Data of a single point: all paths are the field's own."""
    clean, draw = some_draw()
    mean = torch.tensor([0.3, -0.8, 0.5])
    truth = GaussianMap(mean, torch.zeros(3), prediction)
    clean = mean[:, None, None, None].expand_as(clean)
    losses = objective(name, prediction=prediction)(truth, clean, PROMPT, draw).losses
    assert losses["loss"] < 1e-9
    wrong = GaussianMap(mean, torch.zeros(3), prediction, a=0.1)
    assert objective(name, prediction=prediction)(wrong, clean, PROMPT, draw).losses["loss"] > 1e-3


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("name", BOTH)
def test_the_true_map_is_the_minimiser(name: str, prediction: str) -> None:
    """Gaussian data, whose flow bends: trained on steps alone, from a wrong map, the truth is reached."""
    torch.manual_seed(0)
    mean, std = torch.tensor([0.9, -0.8, 1.0]), torch.tensor([0.5, 0.7, 0.3])
    settings = {"first_ratio": 0.02, "last_ratio": 0.02} if name == "solution_flow" else {}
    flow = objective(name, {"joint": 1.0}, prediction, share=1.0, data_share=0.3, adaptive_power=0.0, **settings)
    flow.loss_weights = dict.fromkeys(NAMES, 1.0)
    network = GaussianMap(mean, std, prediction, a=0.3, b=-0.3)
    optimizer = torch.optim.SGD(network.parameters(), 0.3 if prediction == "velocity" else 0.4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        draw = flow.draw(256, (3, 1, 4, 4), generator)
        clean = mean[:, None, None, None] + std[:, None, None, None] * torch.randn(256, 3, 1, 4, 4, generator=generator)
        optimizer.zero_grad()
        flow(network, clean, PROMPT, draw).losses["loss"].backward()
        optimizer.step()
    assert network.a.abs().max() < 0.06
    assert network.b.abs().max() < 0.06


@pytest.mark.parametrize("name", BOTH)
def test_without_steps_it_is_flow_matching(name: str) -> None:
    clean, draw = some_draw()
    whole = FlowObjective(**common())(Wave(), clean, PROMPT, draw).losses
    stays = replace(draw, next_t=draw.t)
    found = objective(name)(Wave(), clean, PROMPT, stays).losses
    for key, value in whole.items():
        assert torch.equal(found[key], value)
    assert all(found[f"jump/{each}"] == 0 for each in NAMES)
    assert torch.equal(objective(name)(Wave(), clean, PROMPT, replace(draw, next_t=None)).losses["loss"], whole["loss"])


def test_draws_are_those_of_flow_matching_and_then_some() -> None:
    plain = FlowObjective(**common()).draw(64, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    flow = objective("solution_flow", share=0.25, data_share=0.5)
    draw = flow.draw(64, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    for name in ("roles", "condition_t", "noise", "posterior_noise", "prompt_draw"):
        assert torch.equal(getattr(draw, name), getattr(plain, name))
    assert plain.next_t is None
    assert draw.next_t is not None
    stepping = draw.next_t < draw.t
    assert stepping.sum() == 16
    assert torch.equal(draw.t[~stepping], plain.t[~stepping])
    assert torch.equal(draw.t[stepping], plain.t[stepping].clamp_min(MIN_JUMP_TIME))
    assert torch.equal(draw.next_t[~stepping], draw.t[~stepping])
    assert (draw.next_t[stepping] == 0).any()
    assert (draw.next_t[stepping] > 0).any()
    again = flow.draw(64, (3, 1, 2, 2), torch.Generator().manual_seed(0))
    assert torch.equal(again.next_t, draw.next_t)  # type: ignore[arg-type]
    # A share of a batch too small for it is right on average.
    small = [flow.draw(2, (3, 1, 1, 1), torch.Generator().manual_seed(seed)) for seed in range(200)]
    counts = [int((one.next_t < one.t).sum()) for one in small]  # type: ignore[operator]
    assert set(counts) == {0, 1}
    assert abs(sum(counts) / 400 - 0.25) < 0.05


def test_given_and_absent_modalities_do_not_step() -> None:
    clean, draw = some_draw()
    network = GaussianMap(torch.zeros(3), torch.ones(3))
    objective("solution_flow", first_ratio=0.2, last_ratio=0.2)(network, clean, PROMPT, draw)
    first, second = network.calls
    stays = (draw.roles == C) | (draw.roles == A)
    assert torch.equal(first["s"][stays], first["t"][stays])
    rows = torch.tensor([0, 2, 4])
    assert torch.equal(second["s"], first["s"][rows])
    assert torch.equal(second["t"][stays[rows]], first["t"][rows][stays[rows]])
    torch.testing.assert_close(second["x_t"][stays[rows]], first["x_t"][rows][stays[rows]])
    moves = ~stays[rows]
    assert (second["t"][moves] < first["t"][rows][moves]).all()
    torch.testing.assert_close(
        second["t"][moves], (0.8 * first["t"][rows] + 0.2 * second["s"])[moves], atol=1e-6, rtol=1e-6
    )
    on_path = linear_path(clean[rows], draw.noise[rows], second["t"]).x_t
    torch.testing.assert_close(second["x_t"], on_path)


@pytest.mark.parametrize("name", BOTH)
def test_shards_average_to_the_whole(name: str) -> None:
    """Also one process without any step, in a batch with missing and known parts."""
    clean, draw = some_draw(8)
    known = torch.zeros(8, 3, 2, 2, dtype=torch.bool)
    known[0, 0, 0], known[3, 1] = True, True
    draw = replace(draw, known=known)
    network, flow = GaussianMap(torch.zeros(3), torch.ones(3), a=0.2), objective(name)
    whole = flow(network, clean, PROMPT, draw).losses["loss"]
    seen: list[Tensor] = []

    def record(counts: Tensor) -> Tensor:
        seen.append(counts)
        return counts

    shards = [(clean[rank::2], draw.shard(rank, 2)) for rank in range(2)]
    assert not (shards[1][1].next_t < shards[1][1].t).any()  # type: ignore[operator]
    for each in shards:
        flow(network, each[0], PROMPT, each[1], record)
    mean = (seen[0] + seen[1]) / 2
    network.calls.clear()
    parts = [flow(network, each[0], PROMPT, each[1], lambda _: mean).losses["loss"] for each in shards]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)
    assert len(network.calls) == 4  # as often in each process: sharded weights are gathered in each run


def test_what_is_known_is_in_no_loss_and_moves_on_its_path() -> None:
    clean, draw = some_draw()
    known = torch.zeros(6, 3, 2, 2, dtype=torch.bool)
    known[:, :, 0] = True
    network, flow = GaussianMap(torch.zeros(3), torch.ones(3), a=0.2), objective("solution_flow")
    losses = flow(network, clean, PROMPT, replace(draw, known=known)).losses
    half = [clean[..., 1:, :], replace(draw, noise=draw.noise[..., 1:, :])]
    torch.testing.assert_close(losses["loss"], flow(network, half[0], PROMPT, half[1]).losses["loss"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BOTH)
def test_the_field_is_guided_where_there_is_a_prompt(name: str) -> None:
    """Flow matching regresses on v + (w - 1) (v - v(no prompt)); steps follow that field; w = 1 needs no null prompt."""
    clean, draw = some_draw()
    stays = replace(draw, next_t=draw.t)
    null, prompt = (
        Conditioning(torch.zeros(6, 1)),
        Conditioning(torch.tensor([[0.0], [0.0], [0.0], [0.9], [0.9], [0.9]])),
    )
    flow = objective(name, guidance_scale=3.0)
    assert flow.needs_null
    assert not objective(name).needs_null
    network = Wave()
    path = linear_path(clean, draw.noise, draw.timesteps)
    without = network(path.x_t, path.timesteps, draw.roles, null).sample
    field = path.velocity.clone()
    field[3:] += 2 * (path.velocity - without)[3:]
    error = (network(path.x_t, path.timesteps, draw.roles, prompt).sample - field).square().mean((2, 3, 4))
    losses = flow(network, clean, prompt, stays, null=null).losses
    for m, modality in enumerate(NAMES):
        torch.testing.assert_close(losses[f"loss/{modality}"], error[draw.roles[:, m] == G, m].mean())
    mixed = objective(name, guidance_scale=3.0, guidance_mix=0.75)(network, clean, prompt, stays, null=null).losses
    own = network(path.x_t, path.timesteps, draw.roles, prompt).sample
    field[3:] = (0.25 * field + 0.75 * own)[3:]
    error = (own - field).square().mean((2, 3, 4))
    torch.testing.assert_close(mixed["loss/depth"], error[draw.roles[:, 1] == G, 1].mean())
    nobody = flow(network, clean, null, stays, null=null).losses
    assert torch.equal(nobody["loss"], objective(name)(network, clean, null, stays).losses["loss"])
    outside = objective(name, guidance_scale=3.0, guidance_interval=[0.0, 0.1])
    assert torch.equal(
        outside(network, clean, prompt, draw, null=null).losses["loss"],
        objective(name)(network, clean, prompt, draw).losses["loss"],
    )
    steps = flow(network, clean, prompt, draw, null=null).losses
    assert (steps["jump/rgb"] - objective(name)(network, clean, prompt, draw).losses["jump/rgb"]).abs() > 1e-3


def test_the_step_shrinks_over_the_training() -> None:
    flow = objective("solution_flow", first_ratio=0.1, last_ratio=0.001)
    assert isinstance(flow, SolutionFlowObjective)
    assert [flow.ratio(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("solution_flow", {"share": 1.5}, "share of the objective is 1.5: give a share from 0 to 1"),
        ("mean_flow", {"data_share": -1}, "data_share of the objective is -1"),
        ("mean_flow", {"guidance_mix": 1.0}, "guidance_mix of the objective is 1.0: give a share from 0 to below 1"),
        ("mean_flow", {"guidance_mix": 0.5}, "guidance_mix of the objective is 0.5, and guidance_scale 1, no guidance"),
        ("mean_flow", {"adaptive_power": 2}, "adaptive_power of the objective is 2"),
        ("mean_flow", {"guidance_scale": -1}, "guidance_scale is -1: give a number >= 0"),
        ("mean_flow", {"guidance_interval": 3}, r"guidance_interval is 3: give \(low, high\)"),
        (
            "solution_flow",
            {"last_ratio": 0.0},
            "last_ratio of the objective is 0.0: give a number above 0, at most 0.4",
        ),
        ("solution_flow", {"num_inference_steps": 0}, "num_inference_steps of the objective is 0: give a whole number"),
        ("mean_flow", {"first_ratio": 0.1}, "objective 'mean_flow' does not take the settings"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(name, **settings)


def test_both_have_the_same_gradient_on_a_transformer() -> None:
    """As r -> 0 solution consistency is MeanFlow; the derivative goes through attention, modulation and both times."""
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "sample_size": 2,
        "in_channels": 2,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
    }
    network = MultimodalDiT(modalities=list(NAMES), patch_size=1, second_time=True, **size).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    clean, draw = some_draw(dtype=torch.float64)
    conditioning = network.conditioner([0, 1, 2, None, 0, 1])
    gradients = []
    for settings in ({"first_ratio": 1e-3, "last_ratio": 1e-3}, {}):
        chosen = SolutionFlowObjective if settings else MeanFlowObjective
        flow = chosen(adaptive_power=0.0, **settings, **common(prediction="sample"))
        loss = flow(network, clean, conditioning, draw).losses["loss"]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.blocks.parameters()))]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


def test_an_output_of_a_network_is_passed_on() -> None:
    clean, draw = some_draw()
    seen: list[Output] = []

    def network(*args: Any, **keywords: Any) -> Output:
        seen.append(Wave()(*args, **keywords))
        return seen[-1]

    step = objective("solution_flow")(network, clean, PROMPT, draw)
    assert step.network_output is seen[0]  # of the whole batch, in its order, as alignment needs it
    assert len(step.network_output.sample) == len(clean)


def test_one_step_of_a_trained_map_is_nearer_to_the_data() -> None:
    """A transformer on data of three points, trained as long: one step of plain flow matching ends in their mean."""
    names = NAMES[:2]
    points = torch.randn(3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(7))
    distances = {}
    for name, settings in (("flow", {}), ("solution_flow", {"share": 0.5, "last_ratio": 0.02})):
        torch.manual_seed(0)
        network = MultimodalDiT(
            modalities=list(names), sample_size=2, in_channels=1, hidden_size=32, depth=1, num_heads=2, num_classes=1,
            prediction="sample", second_time=True,
        )  # fmt: skip
        chosen = make_objective(
            name, settings=settings, mixture=TaskMixture({"joint": 1.0}, names), timesteps=Uniform(),
            loss_weights=dict.fromkeys(names, 1.0), prediction="sample",
        )  # fmt: skip
        optimizer, generator, steps = torch.optim.Adam(network.parameters(), 8e-3), torch.Generator().manual_seed(1), 60
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 8e-3 * min(1, 2 * (1 - step / steps))
            draw = replace(chosen.draw(48, (2, 1, 2, 2), generator), progress=step / steps)
            clean = points[torch.randint(3, (48,), generator=generator)]
            optimizer.zero_grad()
            chosen(network, clean, network.conditioner(), draw).losses["loss"].backward()
            optimizer.step()
        noise = torch.randn(256, 2, 1, 2, 2, generator=torch.Generator().manual_seed(2))
        t, roles = torch.ones(256, 2), torch.zeros(256, 2, dtype=torch.int64)
        with torch.no_grad():
            made = network.eval()(noise, t, roles, network.conditioner(), timesteps_next=0 * t).sample
        distances[name] = float(torch.cdist(made.flatten(1), points.flatten(1)).amin(1).mean())
    assert distances["solution_flow"] < 0.7 * distances["flow"], distances
