"""One pipeline for many threads: each call gives the bits that it gives alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, FirstBlockCacheConfig
from PIL import Image
from torch import Tensor, nn

from mmdit.flow.schedulers import make_scheduler
from mmdit.pipelines.calls import has_hooks
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

MakePipeline = Callable[..., MultimodalDiTPipeline]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def latents_of(pipe: MultimodalDiTPipeline, **arguments: Any) -> Tensor:
    return pipe(**({"seed": 0, "output_type": "latent", "num_inference_steps": 2} | arguments)).latents


def in_threads(pipe: MultimodalDiTPipeline, calls: list[dict[str, Any]], workers: int = 8) -> list[Tensor]:
    """Make all calls at once: no thread begins its first one before all are there."""
    barrier = threading.Barrier(workers)
    first = threading.local()

    def make(call: dict[str, Any]) -> Tensor:
        if not hasattr(first, "done"):
            first.done = True
            barrier.wait(timeout=60)
        return latents_of(pipe, **call)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(make, calls))


@pytest.mark.parametrize("scheduler", ["euler", "dpmsolver++", "euler_maruyama"])
def test_eight_threads_of_classes_and_understanding(make_pipeline: MakePipeline, scheduler: str) -> None:
    pipe = make_pipeline(scheduler)
    calls: list[dict[str, Any]] = [
        {"class_labels": i % 5, "seed": i, "num_inference_steps": 2 + i % 3, "guidance_scale": 1 + i % 3}
        for i in range(12)
    ]
    calls += [{"conditions": {"rgb": PICTURE}, "seed": i, "num_inference_steps": None} for i in range(4)]
    alone = [latents_of(pipe, **call) for call in calls]
    for one, expected in zip(in_threads(pipe, calls), alone, strict=True):
        assert torch.equal(one, expected)


def test_eight_threads_of_prompts(prompted: MultimodalDiTPipeline) -> None:
    texts = ["a red torus", "a torus left of a cone", "a cone"]
    calls: list[dict[str, Any]] = [{"prompt": texts[i % 3], "seed": i} for i in range(12)]
    calls += [{"prompt": "a {torus}", "subjects": [PICTURE], "seed": i, "fusing_scale": i / 4} for i in range(4)]
    together = in_threads(prompted, calls)  # first: the encoder is not built yet
    for one, call in zip(together, calls, strict=True):
        assert torch.equal(one, latents_of(prompted, **call))


def test_callbacks_see_and_change_their_own_call(pipe: MultimodalDiTPipeline) -> None:
    entered = threading.Barrier(2)

    def call(scale: float, stop: bool) -> tuple[Tensor, list[tuple[float, int, int]], Any]:
        seen: list[tuple[float, int, int]] = []

        def back(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if step < 2:
                entered.wait(timeout=60)  # both calls are under way
            seen.append((pipeline.guidance_scale, pipeline.num_timesteps, len(pipeline.scheduler.timesteps)))
            pipeline._guidance_scale += 1.0
            pipeline._interrupt = stop and step == 1
            return tensors

        steps = 5 if stop else 4
        out = latents_of(
            pipe, class_labels=1, num_inference_steps=steps, guidance_scale=scale, callback_on_step_end=back
        )
        return out, seen, (pipe.guidance_scale, pipe.num_timesteps, pipe.interrupt)

    with ThreadPoolExecutor(2) as pool:
        stopped, whole = pool.map(call, (2.0, 7.0), (True, False))
    assert stopped[1] == [(2.0, 5, 5), (3.0, 5, 5)]
    assert stopped[2] == (4.0, 5, True)
    assert whole[1] == [(7.0 + i, 4, 4) for i in range(4)]
    assert whole[2] == (11.0, 4, False)
    assert torch.isfinite(stopped[0]).all()


def test_another_thread_interrupts_all_calls(pipe: MultimodalDiTPipeline) -> None:
    steps: list[int] = []

    def back(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        if step == 0:
            other = threading.Thread(target=setattr, args=(pipe, "_interrupt", True))
            other.start()
            other.join()
        return tensors

    latents_of(pipe, callback_on_step_end=back)
    assert steps == [0]
    assert pipe.interrupt
    latents_of(pipe)
    assert not pipe.interrupt


def test_a_call_within_a_callback(pipe: MultimodalDiTPipeline) -> None:
    expected = latents_of(pipe, class_labels=1, guidance_scale=3.0)
    inner = latents_of(pipe, num_inference_steps=2)

    def back(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert torch.equal(latents_of(pipe, num_inference_steps=2), inner)
        assert (pipe.guidance_scale, pipe.num_timesteps) == (3.0, 2)
        return tensors

    out = latents_of(pipe, class_labels=1, guidance_scale=3.0, callback_on_step_end=back)
    assert torch.equal(out, expected)


def test_the_pipelines_scheduler_is_left_alone(pipe: MultimodalDiTPipeline) -> None:
    own = pipe.scheduler
    before = own.timesteps.clone()
    expected = latents_of(pipe)
    assert pipe.scheduler is own
    assert torch.equal(own.timesteps, before)
    second = MultimodalDiTPipeline(**pipe.components, **pipe.parameters)
    assert second.scheduler is own
    pipe.scheduler = make_scheduler("heun")
    assert pipe.config.scheduler[1] == "FlowMatchHeunDiscreteScheduler"
    assert torch.equal(latents_of(second), expected)
    assert torch.equal(latents_of(copy.deepcopy(second)), expected)


def test_a_call_that_fails_leaves_no_trace(pipe: MultimodalDiTPipeline) -> None:
    def back(*_: Any) -> dict[str, Tensor]:
        raise RuntimeError("stop")

    own, expected = pipe.scheduler, latents_of(pipe)
    with pytest.raises(RuntimeError, match="stop"):
        latents_of(pipe, callback_on_step_end=back)
    assert pipe.scheduler is own
    assert torch.equal(latents_of(pipe), expected)


def test_calls_on_hooked_networks_wait_for_each_other(pipe: MultimodalDiTPipeline) -> None:
    accelerate = pytest.importorskip("accelerate")
    assert not has_hooks(pipe.components.values())
    calls: list[dict[str, Any]] = [{"class_labels": i % 5, "seed": i} for i in range(8)]
    alone = [latents_of(pipe, **call) for call in calls]
    for model in (pipe.transformer, pipe.vae):
        accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    assert has_hooks(pipe.components.values())
    for one, expected in zip(in_threads(pipe, calls, workers=4), alone, strict=True):
        assert torch.equal(one, expected)


def test_has_hooks() -> None:
    assert not has_hooks([nn.Linear(1, 1), make_scheduler("euler"), None])


def test_networks_that_are_cached_or_cast(pipe: MultimodalDiTPipeline) -> None:
    arguments: dict[str, Any] = {"class_labels": 1, "num_inference_steps": 4, "guidance_interval": (0.0, 0.6)}
    expected = latents_of(pipe, **arguments)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))  # what is guided later is another batch
    assert torch.equal(latents_of(pipe, **arguments), expected)
    assert has_hooks(pipe.components.values())
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    cached = latents_of(pipe, **arguments)
    assert not torch.equal(cached, expected)
    assert torch.equal(latents_of(pipe, **arguments), cached)  # nothing is left of the call before
    pipe.transformer.disable_cache()
    assert not has_hooks(pipe.components.values())

    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    cast = latents_of(pipe, **arguments)
    assert (cast - expected).abs().max() < 0.3 * expected.abs().max()


@pytest.mark.parametrize("kind", ["tiny", "asymmetric"])
def test_vaes_of_other_classes(pipe: MultimodalDiTPipeline, kind: str) -> None:
    vae: Any
    if kind == "tiny":
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4, upsampling_scaling_factor=2,
        )  # fmt: skip
    else:
        vae = AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, down_block_out_channels=(8, 8), norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2, up_block_out_channels=(8, 8), latent_channels=4,
        )  # fmt: skip
        assert "shift_factor" not in vae.config
    other = MultimodalDiTPipeline(pipe.transformer, vae.eval(), pipe.scheduler, id2label=pipe.id2label)
    other.set_progress_bar_config(disable=True)
    size = pipe.transformer.config.sample_size * 2
    assert other(PICTURE, seed=0).depth.shape == (1, size, size)
