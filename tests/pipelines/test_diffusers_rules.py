"""What diffusers' own testers ask of a pipeline, as far as no other file asks it; ``test_diffusers_testers`` runs them.

Held elsewhere: saving and loading, variants, shards, optional components, dtypes (``test_loading*``); batches, tuples, callbacks,
half precision, VAE slicing, sequential offloading (``test_pipeline_multimodal_dit``); caches, layerwise casting, another VAE
(``test_calls``); LoRA (``test_lora``); prompts encoded alone (``test_prompts``); the Hub (``test_saving``); the model
(``tests/models/test_transformer.py``, ``test_hooks.py``, ``test_adapters.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback

from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

MakePipeline = Callable[..., MultimodalDiTPipeline]


def latents_of(pipe: MultimodalDiTPipeline, **arguments: Any) -> torch.Tensor:
    out = pipe(**{"class_labels": "torus", "num_inference_steps": 2, "seed": 0, "output_type": "latent", **arguments})
    return out.latents


def test_names_that_every_pipeline_takes(pipe: MultimodalDiTPipeline) -> None:
    names = inspect.signature(pipe.__call__).parameters
    wanted = {"num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"}
    assert wanted | {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= names.keys()


@pytest.mark.parametrize("labels", ["torus", ["torus", "cone"]])
def test_images_per_prompt(pipe: MultimodalDiTPipeline, labels: Any) -> None:
    count = 1 if isinstance(labels, str) else 2
    for number in (1, 3):
        out = latents_of(pipe, class_labels=labels, num_images_per_prompt=number)
        assert torch.equal(out, latents_of(pipe, class_labels=labels, num_images=number))
        assert len(out) == count * number
    with pytest.raises(UserError, match="num_images and num_images_per_prompt are both given"):
        latents_of(pipe, num_images=2, num_images_per_prompt=3)
    with pytest.raises(UserError, match="num_images is 0"):
        latents_of(pipe, num_images_per_prompt=0)


def test_a_pipeline_of_a_pipeline(pipe: MultimodalDiTPipeline) -> None:
    expected = latents_of(pipe)
    other = MultimodalDiTPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert other.transformer is pipe.transformer
    assert other.modalities == pipe.modalities
    assert other.id2label == pipe.id2label
    assert torch.equal(latents_of(other), expected)
    assert torch.equal(latents_of(pipe), expected)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading(make_pipeline: MakePipeline, offload_type: str) -> None:
    pytest.importorskip("accelerate")
    expected = make_pipeline()("torus", seed=0, num_inference_steps=2)
    pipe = make_pipeline()
    pipe.enable_group_offload(torch.device("cpu"), offload_type=offload_type, num_blocks_per_group=1)
    for _ in range(2):
        out = pipe("torus", seed=0, num_inference_steps=2)
        for name in ("depth", "normal", "segmentation"):
            np.testing.assert_array_equal(out[name], expected[name])


def test_attention_slicing_changes_nothing(pipe: MultimodalDiTPipeline) -> None:
    """Attention never holds its whole matrix: there is nothing to slice, and asking for it is no error."""
    expected = latents_of(pipe)
    pipe.enable_attention_slicing()
    assert torch.equal(latents_of(pipe), expected)
    pipe.disable_attention_slicing()


def test_a_callback_object(pipe: MultimodalDiTPipeline) -> None:
    """diffusers' ``PipelineCallback``: guidance is cut off after a step."""

    class CutOff(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012 - as in diffusers

        def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> Any:
            if step_index == self.config.cutoff_step_index:
                pipeline._guidance_scale = 1.0
            return callback_kwargs

    never, after_one = (
        latents_of(pipe, callback_on_step_end=CutOff(cutoff_step_ratio=None, cutoff_step_index=step)) for step in (7, 0)
    )
    assert torch.equal(never, latents_of(pipe))
    assert (after_one - never).abs().max() > 1e-4
