"""Editing beyond masks: modalities that are kept, and how far what is generated may go from the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.flow.schedulers import SCHEDULERS
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import Role

MakePipeline = Callable[..., MultimodalDiTPipeline]
RGB = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
GEOMETRY = ["depth", "normal", "segmentation"]
MASK = np.zeros((32, 32), dtype=bool)
MASK[:, 18:] = True


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def change(pipe: MultimodalDiTPipeline, **arguments: Any) -> Any:
    defaults: dict[str, Any] = {"conditions": {"rgb": RGB}, "num_inference_steps": 4, "output_type": "np", "seed": 0}
    if "latents" in arguments:
        del defaults["seed"]
    return pipe(**(defaults | arguments))


def test_translation_keeps_the_geometry_that_is_understood(pipe: MultimodalDiTPipeline) -> None:
    understood = change(pipe, num_inference_steps=1)
    out = change(pipe, keep=GEOMETRY, class_labels="cone")
    for name in GEOMETRY:
        np.testing.assert_array_equal(out[name], understood[name])
    assert not np.allclose(out.rgb, understood.rgb, atol=0.1)
    one = change(pipe, keep="depth", class_labels="cone")
    np.testing.assert_array_equal(one.depth, understood.depth)
    assert not np.allclose(one.normal, understood.normal, atol=0.1)


def test_the_loop_by_hand(make_pipeline: MakePipeline) -> None:
    """Depth is estimated and held; the others start half way on the path from the picture, two of four steps are taken."""
    pipe = make_pipeline()
    model, codec, start = pipe.transformer, LatentCodec(pipe.vae, pipe.modalities), noise()
    with torch.no_grad():
        whole = torch.zeros_like(start)
        whole[:, 0] = codec.latents(codec.moments(torch.from_numpy(RGB).permute(2, 0, 1)[None] / 127.5 - 1), "rgb")

        def shown(x: Tensor, held: int) -> Tensor:
            return torch.stack([x[:, m] if m != held else whole[:, m] for m in range(4)], dim=1)

        roles = torch.zeros(1, 4, dtype=torch.long)
        roles[:, 0] = Role.CONDITION
        times = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
        estimate = start - model(shown(start, 0), times, roles, model.conditioner([None])).sample
        whole = shown(estimate, 0)
        roles = torch.zeros(1, 4, dtype=torch.long)
        roles[:, 1] = Role.CONDITION
        x = 0.5 * whole + 0.5 * start
        for t, t_next in ((0.5, 0.25), (0.25, 0.0)):
            times = torch.tensor([[t, 0.0, t, t]])
            x = x + (t_next - t) * model(shown(x, 1), times, roles, model.conditioner([3])).sample
        x = shown(x, 1)
    settings = {"guidance_scale": 1.0, "condition_time": 0.0, "latents": start, "output_type": "latent"}
    out = change(pipe, keep="depth", strength=0.5, class_labels="cone", **settings)
    torch.testing.assert_close(out.latents, x, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_strength_goes_from_the_picture_to_a_new_one(make_pipeline: MakePipeline, scheduler: str) -> None:
    pipe = make_pipeline(scheduler)
    settings = {"keep": [], "latents": noise(), "output_type": "latent", "class_labels": "cone"}
    start = change(pipe, **settings, strength=0).latents  # as it was understood
    understood = change(pipe, num_inference_steps=1, latents=noise(), output_type="latent").latents
    assert torch.equal(start, understood) or scheduler == "euler_maruyama"  # which draws noise at random
    understood_of = change(pipe, num_inference_steps=1)
    steps: list[int] = []

    def count(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        return {}

    distances = []
    for strength in (0.25, 0.5, 0.75):
        steps.clear()
        changed = change(pipe, **settings, strength=strength, callback_on_step_end=count).latents
        taken = int(4 * strength)
        assert steps == list(range(2 * taken - 1 if scheduler == "heun" else taken))
        distances.append(float((changed - start).norm()))
    assert 0 < distances[0] < distances[1] < distances[2]
    same = {"class_labels": "cone", "num_inference_steps": 4, "latents": noise(), "output_type": "latent"}
    whole, fresh = (
        pipe(**same, **edit, generator=torch.Generator().manual_seed(5)).latents
        for edit in (
            {"conditions": {name: understood_of[name] for name in understood_of}, "mask": np.ones((32, 32))},
            {},
        )
    )
    assert torch.equal(whole, fresh)  # nothing of the picture is left


def test_mask_keep_and_strength_together(pipe: MultimodalDiTPipeline) -> None:
    understood = change(pipe, num_inference_steps=1)
    out = change(pipe, mask=MASK, keep=["normal"], strength=0.5, class_labels="cone")
    np.testing.assert_array_equal(out.normal, understood.normal)
    for name in ("rgb", "depth", "segmentation"):
        np.testing.assert_array_equal(out[name][0][~MASK], understood[name][0][~MASK])
        assert not np.array_equal(out[name][0][MASK], understood[name][0][MASK])
    nothing = change(pipe, mask=MASK, strength=0)
    np.testing.assert_array_equal(nothing.depth, understood.depth)


def test_at_the_size_of_the_picture(pipe: MultimodalDiTPipeline) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    mask = np.zeros((45, 70), dtype=bool)
    mask[:20, 5:33] = True
    out = change(pipe, conditions={"rgb": picture}, mask=mask, class_labels="cone", match_input_resolution=True)
    assert out.depth.shape == (1, 45, 70)
    pixels = np.round(out.rgb[0] * 255).astype(np.uint8)
    assert np.array_equal(pixels[~mask], picture[~mask])
    assert not np.array_equal(pixels[mask], picture[mask])
    moved = change(pipe, conditions={"rgb": picture}, keep=GEOMETRY, match_input_resolution=True)
    assert moved.normal.shape == (1, 45, 70, 3)
    assert not np.array_equal(np.round(moved.rgb[0] * 255).astype(np.uint8), picture)


def test_batches_of_different_conditions(pipe: MultimodalDiTPipeline) -> None:
    depth = np.linspace(1, 5, 32 * 32, dtype=np.float32).reshape(32, 32)
    both = [{"rgb": RGB}, {"rgb": 255 - RGB, "depth": depth}]
    pair = change(pipe, conditions=both, keep=["depth"], seed=[0, 1], output_type="latent").latents
    alone = change(pipe, conditions=both[1], keep=["depth"], seed=[1], output_type="latent").latents
    torch.testing.assert_close(pair[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength is 0.5, and no picture is edited: give mask, or keep"),
        ({"mask": MASK, "strength": 1.5}, r"strength is 1.5: give a number from 0 \(nothing changes\) to 1"),
        ({"mask": MASK, "strength": -0.1}, "strength is -0.1: give a number from 0"),
        ({"mask": MASK, "strength": float("nan")}, "strength is nan: give a number from 0"),
        ({"mask": MASK, "strength": "half"}, "strength is 'half': give a number from 0"),
        ({"mask": MASK, "strength": True}, "strength is True: give a number from 0"),
        ({"mask": MASK, "strength": 0.2}, "strength 0.2 of 4 steps leaves no step: give at least 0.25, or more steps"),
        ({"keep": ["dept"]}, "unknown modality in keep 'dept'.*depth"),
        ({"keep": 3}, "keep is a int: give a list of modalities, of rgb, depth, normal, segmentation"),
        ({"keep": []}, "keep is empty and strength is 1, which uses nothing of the picture"),
        ({"keep": ["rgb", *GEOMETRY]}, r"keep holds all modalities \(rgb, depth, normal, segmentation\): leave out"),
        ({"keep": GEOMETRY, "conditions": None}, "keep says what to keep of a picture, and none is given"),
        ({"keep": GEOMETRY, "conditions": [{"rgb": RGB}, None]}, "keep says what to keep of a picture"),
    ],
)
def test_bad_edits(pipe: MultimodalDiTPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        change(pipe, **arguments)
    assert "\n" not in str(caught.value)
