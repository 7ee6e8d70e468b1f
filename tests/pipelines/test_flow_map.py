"""Sampling with a model that learned its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.flow.schedulers import FlowMapScheduler, jumps, make_scheduler, shift_of
from mmdit.pipelines.onnx_export import PromptStep, graphs_of
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import Role

MakePipeline = Callable[..., MultimodalDiTPipeline]
RGB = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
NOISE = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def sampled(pipe: MultimodalDiTPipeline, steps: int, **arguments: Any) -> Tensor:
    return pipe(
        num_inference_steps=steps, latents=NOISE, output_type="latent", condition_time=0.0, **arguments
    ).latents  # fmt: skip


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@torch.no_grad()
def test_steps_are_the_models_own(make_pipeline: MakePipeline, prediction: str, steps: int) -> None:
    """x_s = x_t + (s - t) u(x_t, t, s), with guidance on u, one evaluation of a batch of two a step."""
    pipe = make_pipeline("flow_map", prediction=prediction)
    model, roles = pipe.transformer, torch.zeros(1, 4, dtype=torch.int64)
    for scale in (1.0, 3.0):
        x = NOISE
        for i in range(steps):
            t, s = (torch.full((1, 4), 1 - number / steps) for number in (i, i + 1))
            outs = [model(x, t, roles, model.conditioner([c]), timesteps_next=s).sample for c in (2, None)]
            u = [out if prediction == "velocity" else (x - out) / t[0, 0].clamp_min(0.03) for out in outs]
            x = x + (s - t)[0, 0] * (u[0] + (scale - 1) * (u[0] - u[1]))
        torch.testing.assert_close(sampled(pipe, steps, class_labels=2, guidance_scale=scale), x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_is_given_does_not_step(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline("flow_map")
    seen: list[tuple[Tensor, Tensor]] = []
    forward = pipe.transformer.forward

    def watch(x: Tensor, t: Tensor, *rest: Any, **keywords: Any) -> Any:
        seen.append((t, keywords["timesteps_next"]))
        return forward(x, t, *rest, **keywords)

    monkeypatch.setattr(pipe.transformer, "forward", watch)
    depth = np.linspace(1, 5, 32 * 32, dtype=np.float32).reshape(32, 32)
    sampled(pipe, 2, conditions={"depth": depth})
    index = list(pipe.modalities).index("depth")
    for (t, s), (now, later) in zip(seen, ((1.0, 0.5), (0.5, 0.0)), strict=True):
        for m in range(4):
            assert (float(t[0, m]), float(s[0, m])) == ((0.0, 0.0) if m == index else (now, later))
    # One step from a picture ends in the mean of what may be there: no step for the network; another sample's is one.
    seen.clear()
    pipe(conditions={"rgb": [RGB, None], "depth": [None, depth]}, num_inference_steps=1, output_type="latent")
    ((t, s),) = seen
    assert torch.equal(s[0], t[0])
    assert [float(value) for value in s[1]] == [0.0, pytest.approx(0.005), 0.0, 0.0]
    assert [int(role) for role in (Role.GENERATE, Role.CONDITION)] == [0, 1]


def test_the_folder_says_how_it_samples(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipe = make_pipeline("flow_map", prediction="sample")
    made = MultimodalDiTPipeline(**pipe.components, **pipe.parameters, defaults={"num_inference_steps": 2})
    made.scheduler = make_scheduler("flow_map", 3.0)
    made.register_modules(scheduler=made.scheduler)
    made.save_pretrained(tmp_path / "model")
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path / "model")
    assert (type(loaded.scheduler), jumps(loaded.scheduler), shift_of(loaded.scheduler)) == (
        FlowMapScheduler,
        True,
        3.0,
    )
    assert loaded.default_steps() == 2
    expected = pipe.transformer
    assert torch.equal(sampled(loaded, 2, class_labels=1), sampled(made, 2, class_labels=1))
    one = {"class_labels": 1, "guidance_scale": 1.0}
    jump = sampled(loaded, 1, **one)
    loaded.scheduler = make_scheduler("euler")  # the velocity, as of a model of one time
    flow = sampled(loaded, 1, **one)
    t, roles = torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad():
        clean = expected(NOISE, t, roles, expected.conditioner([1])).sample
    torch.testing.assert_close(flow, clean, atol=1e-5, rtol=1e-5)
    assert (jump - flow).abs().max() > 1e-3


@torch.no_grad()
def test_exported_steps_are_the_models_own(make_pipeline: MakePipeline) -> None:
    """The module of the graph, with the inputs that it is compared with; the rest of the export is test_export's."""
    pipe = make_pipeline("flow_map")
    step, model = graphs_of(pipe)[0], pipe.transformer
    inputs = step.inputs(2)
    assert list(inputs) == ["latents", "timesteps", "roles", "class_labels", "timesteps_next"]
    latents, timesteps, roles, labels, later = inputs.values()
    assert (later < timesteps).all()
    prompt = model.conditioner(labels)
    expected = model(latents, timesteps, roles, prompt, timesteps_next=later).sample
    assert torch.equal(step.module(**inputs), expected)
    assert not torch.equal(model(latents, timesteps, roles, prompt).sample, expected)
    assert torch.equal(PromptStep(model)(latents, timesteps, roles, prompt.vector, timesteps_next=later), expected)
    assert list(graphs_of(make_pipeline())[0].inputs(2)) == ["latents", "timesteps", "roles", "class_labels"]


def test_a_model_of_one_time_can_not_step(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    pipe.scheduler = make_scheduler("flow_map")
    with pytest.raises(UserError, match="flow_map takes the steps that a model with a second time was trained for"):
        pipe(num_inference_steps=1)
