"""Guidance by the model's own middle block: the equation, one evaluation a step, and what a model folder says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

from mmdit.errors import UserError
from mmdit.pipelines.defaults import Defaults
from mmdit.pipelines.onnx_export import graphs_of
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import Role

MakePipeline = Callable[..., MultimodalDiTPipeline]
NOISE = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def sample(pipe: MultimodalDiTPipeline, **arguments: Any) -> Tensor:
    values = {"class_labels": [1, 4], "num_inference_steps": 4, "latents": NOISE, "output_type": "latent"}
    return pipe(**(values | arguments)).latents


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_steps_away_from_the_middle_block(make_pipeline: MakePipeline, prediction: str) -> None:
    """Euler steps by hand, guidance on the class (2) and by the middle (1.5, from t = 0.3 on)."""
    pipe = make_pipeline(internal_guidance_depth=1, prediction=prediction)
    network, x = pipe.transformer, NOISE
    roles = torch.full((2, 4), int(Role.GENERATE))
    with torch.no_grad():
        for t, following in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
            times = torch.full((2, 4), t)
            branches = []
            for labels in ([1, 4], [None, None]):
                out = network(x, times, roles, network.conditioner(labels), output_internal=True)
                both = [out.sample, out.internal_sample]
                if prediction == "sample":
                    both = [(x - clean) / t for clean in both]
                branches.append(both[1] + 1.5 * (both[0] - both[1]) if t >= 0.3 else both[0])
            velocity = branches[1] + 2 * (branches[0] - branches[1])
            x = x + (following - t) * velocity
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    found = sample(pipe, guidance_scale=2.0, internal_guidance_scale=1.5, internal_guidance_interval=(0.3, 1.0))
    torch.testing.assert_close(found, x, atol=2e-4, rtol=2e-4)
    assert len(calls) == 4, "one evaluation a step"
    assert not torch.allclose(found, sample(pipe, guidance_scale=2.0), atol=0.1)


def test_off_is_as_without_the_head(make_pipeline: MakePipeline) -> None:
    pipe, plain = make_pipeline(internal_guidance_depth=1), make_pipeline()
    weights = {k: v for k, v in pipe.transformer.state_dict().items() if not k.startswith("internal_head.")}
    plain.transformer.load_state_dict(weights)
    assert torch.equal(sample(pipe), sample(plain))
    assert torch.equal(sample(pipe), sample(pipe, internal_guidance_scale=1.0))


def test_scale_is_saved_with_the_model_and_off_in_understanding(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipe = make_pipeline(internal_guidance_depth=1)
    defaults = {"internal_guidance_scale": 1.4, "internal_guidance_interval": [0.3, 1.0]}
    MultimodalDiTPipeline(**pipe.components, **pipe.parameters, defaults=defaults).save_pretrained(tmp_path / "own")
    own = MultimodalDiTPipeline.from_pretrained(tmp_path / "own")
    own.set_progress_bar_config(disable=True)
    expected = sample(pipe, internal_guidance_scale=1.4, internal_guidance_interval=(0.3, 1.0))
    assert torch.equal(sample(own), expected)
    assert torch.equal(sample(own, internal_guidance_scale=1.0), sample(pipe))
    rgb = {"conditions": {"rgb": torch.rand(2, 3, 32, 32)}, "class_labels": None}
    assert torch.equal(sample(own, **rgb), sample(pipe, **rgb))
    assert "25 steps, guidance 2, internal guidance 1.4" in (tmp_path / "own" / "README.md").read_text()


def test_a_call_that_names_guidance_alone_has_no_internal_one(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline(internal_guidance_depth=1)
    defaults = {"guidance_scale": 1.5, "internal_guidance_scale": 1.4}
    own = MultimodalDiTPipeline(**pipe.components, **pipe.parameters, defaults=defaults)
    own.set_progress_bar_config(disable=True)
    for scale in (1.0, 1.5, 3.0):
        assert torch.equal(sample(own, guidance_scale=scale), sample(pipe, guidance_scale=scale))
    expected = sample(pipe, guidance_scale=1.5, internal_guidance_scale=1.4)
    assert torch.equal(sample(own), expected)
    assert not torch.equal(sample(own, guidance_scale=1.5), expected)
    assert torch.equal(
        sample(own, internal_guidance_scale=1.2), sample(pipe, guidance_scale=1.5, internal_guidance_scale=1.2)
    )


def test_a_cache_of_blocks_turns_the_models_own_off(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline(internal_guidance_depth=1)
    own = MultimodalDiTPipeline(**pipe.components, **pipe.parameters, defaults={"internal_guidance_scale": 1.4})
    own.set_progress_bar_config(disable=True)
    expected = sample(own, guidance_scale=2.0)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(sample(own), expected)


def test_what_is_otherwise_with_a_prompt() -> None:
    own = Defaults.of(
        {
            "num_inference_steps": 10,
            "guidance_scale": 1.0,
            "internal_guidance_scale": 1.8,
            "prompt_num_inference_steps": 25,
            "prompt_guidance_scale": 5.0,
            "prompt_internal_guidance_scale": 1.0,
        }
    )
    assert (own.steps(prompt=False), own.steps(prompt=True)) == (10, 25)
    assert own.guided(None, None, prompt=False) == (1.0, 1.8)
    assert own.guided(None, None, prompt=True) == (5.0, 1.0)
    assert own.guided(2.0, None, prompt=False) == (2.0, 1.0)
    assert own.guided(None, 1.3, prompt=True) == (5.0, 1.3)
    described = "10 steps, guidance 1, internal guidance 1.8 (on prompts 25 steps, guidance 5, no internal guidance)"
    assert own.described() == described
    for name, value, message in (
        ("prompt_num_inference_steps", 0, "defaults: prompt_num_inference_steps is 0: give a whole number from 1"),
        ("num_inference_steps", None, "defaults: num_inference_steps is None: give a whole number from 1"),
        ("prompt_internal_guidance_scale", -1, "defaults: prompt_internal_guidance_scale is -1: give a number >= 0"),
    ):
        with pytest.raises(UserError, match=message):
            Defaults.of({name: value})


@torch.no_grad()
def test_an_exported_step_is_guided_by_each_samples_scale(make_pipeline: MakePipeline) -> None:
    """The module of the graph, with the inputs that it is compared with; the rest of the export is test_export's."""
    pipe = make_pipeline(internal_guidance_depth=1)
    graph = graphs_of(pipe)[0]
    inputs = graph.inputs(2)
    assert list(inputs)[-1] == "internal_guidance_scale"
    one = torch.ones(2, 4)
    given = {"timesteps": one, "roles": torch.zeros(2, 4, dtype=torch.long), "class_labels": torch.tensor([1, 4])}
    velocity = graph.module(NOISE, **given, internal_guidance_scale=torch.tensor([1.4, 1.0]))
    for row, scale in enumerate((1.4, 1.0)):
        made = sample(pipe, num_inference_steps=1, guidance_scale=1.0, internal_guidance_scale=scale)
        torch.testing.assert_close((NOISE - velocity)[row], made[row])


def test_models_that_can_not_refuse_in_one_line(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    with pytest.raises(UserError, match=r"internal_guidance_scale is 1.5: this model has no head on a middle block"):
        sample(pipe, internal_guidance_scale=1.5)
    with pytest.raises(UserError, match=r"defaults: internal_guidance_scale is 1.5: this model has no head"):
        MultimodalDiTPipeline(**pipe.components, **pipe.parameters, defaults={"internal_guidance_scale": 1.5})
    pipe = make_pipeline(internal_guidance_depth=1)
    for arguments, message in (
        ({"internal_guidance_scale": -1.0}, "internal_guidance_scale is -1.0: give a number >= 0"),
        ({"internal_guidance_interval": (0.8, 0.2)}, "internal_guidance_interval is .0.8, 0.2.: give"),
        ({"internal_guidance_interval": ()}, r"internal_guidance_interval is \(\): give"),
    ):
        with pytest.raises(UserError, match=message):
            sample(pipe, **arguments)
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(UserError, match="a cache leaves out the middle block"):
        sample(pipe, internal_guidance_scale=1.5)
