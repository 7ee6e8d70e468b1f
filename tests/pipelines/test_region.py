"""Editing: a region of a picture is generated anew, in all modalities; the rest is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.flow.schedulers import SCHEDULERS
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.region import read_region
from mmdit.task import Role

MakePipeline = Callable[..., MultimodalDiTPipeline]
RGB = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
METRES = np.random.default_rng(1).uniform(1, 9, (32, 32)).astype(np.float32)
MASK = np.zeros((32, 32), dtype=bool)
MASK[:, 18:] = True  # cells are 4 pixels wide: the one of columns 16 to 19 is generated, too
KNOWN = torch.zeros(8, 8, dtype=torch.bool)
KNOWN[:, :4] = True


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edit(pipe: MultimodalDiTPipeline, **arguments: Any) -> Any:
    defaults: dict[str, Any] = {"conditions": {"rgb": RGB}, "mask": MASK, "num_inference_steps": 3}
    return pipe(**(defaults | {"generator": generator()} | arguments))


def test_outside_is_kept_and_inside_is_new(pipe: MultimodalDiTPipeline) -> None:
    understood = pipe(conditions={"rgb": RGB}, num_inference_steps=1, generator=generator(), output_type="np")
    out = edit(pipe, class_labels="cone", output_type="np")
    assert np.array_equal(np.round(out.rgb[0] * 255).astype(np.uint8)[~MASK], RGB[~MASK])
    for name in pipe.modalities:  # what is not given is what understanding, with no label, says of the whole picture
        np.testing.assert_array_equal(out[name][0][~MASK], understood[name][0][~MASK])
        assert not np.array_equal(out[name][0][MASK], understood[name][0][MASK])
    pil = edit(pipe, class_labels="cone")
    assert np.array_equal(np.asarray(pil.rgb[0])[~MASK], RGB[~MASK])
    more = edit(pipe, num_estimation_steps=4, output_type="np")
    assert not np.array_equal(more.depth[0][~MASK], understood.depth[0][~MASK])
    np.testing.assert_array_equal(more.rgb[0][~MASK], out.rgb[0][~MASK])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_known_latents_are_on_their_path_at_every_step(make_pipeline: MakePipeline, scheduler: str) -> None:
    pipe = make_pipeline(scheduler)
    codec = LatentCodec(pipe.vae, pipe.modalities)
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator())
    with torch.no_grad():
        clean = codec.latents(codec.moments(torch.from_numpy(RGB).permute(2, 0, 1)[None] / 127.5 - 1), "rgb")
    seen: list[Tensor] = []
    times: list[float] = []

    def look(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].clone())
        times[:] = pipeline.scheduler.sigmas[1:].tolist()  # the call's own
        return tensors

    latents = edit(pipe, latents=noise, output_type="latent", callback_on_step_end=look).latents
    assert len(seen) == len(times)
    for x, t in zip(seen, times, strict=True):
        torch.testing.assert_close(x[:, 0][..., KNOWN], (1 - t) * clean[..., KNOWN] + t * noise[:, 0][..., KNOWN])
    assert torch.equal(latents[:, 0][..., KNOWN], clean[..., KNOWN])
    assert torch.isfinite(latents).all()
    assert (latents[:, 0] - clean)[..., ~KNOWN].abs().max() > 1e-2


def test_the_loop_by_hand(make_pipeline: MakePipeline) -> None:
    """One step of understanding without a label, then two Euler steps with one, what is known put back before each."""
    pipe = make_pipeline()
    model, codec = pipe.transformer, LatentCodec(pipe.vae, pipe.modalities)
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator())
    with torch.no_grad():
        clean = codec.latents(codec.moments(torch.from_numpy(RGB).permute(2, 0, 1)[None] / 127.5 - 1), "rgb")
        x = noise.clone()
        x[:, 0] = 0.98 * clean + 0.02 * noise[:, 0]
        times = torch.tensor([[0.02, 1.0, 1.0, 1.0]])
        roles = torch.tensor([[Role.CONDITION] + [Role.GENERATE] * 3])
        whole = noise - model(x, times, roles, model.conditioner([None])).sample
        whole[:, 0] = clean
        x, roles = noise, torch.zeros(1, 4, dtype=torch.long)
        for t, t_next in ((1.0, 0.5), (0.5, 0.0)):
            x = torch.where(KNOWN, (1 - t) * whole + t * noise, x)
            x = x + (t_next - t) * model(x, torch.full((1, 4), t), roles, model.conditioner([3])).sample
        x = torch.where(KNOWN, whole, x)
    out = edit(
        pipe, class_labels="cone", num_inference_steps=2, guidance_scale=1.0, condition_time=0.02, output_type="latent"
    )
    torch.testing.assert_close(out.latents, x, atol=2e-4, rtol=1e-3)


def test_all_modalities_may_be_given_and_come_back_outside(pipe: MultimodalDiTPipeline) -> None:
    given = pipe(num_inference_steps=1, generator=generator(3), output_type="np")
    out = edit(pipe, conditions={name: given[name] for name in given}, output_type="np")
    for name in given:
        understood = pipe(conditions={name: given[name]}, num_inference_steps=1, output_type="np")[name]
        np.testing.assert_array_equal(out[name][0][~MASK], understood[0][~MASK])
        assert not np.allclose(out[name][0][MASK], understood[0][MASK])


def test_any_form_of_mask(pipe: MultimodalDiTPipeline) -> None:
    expected = edit(pipe, output_type="latent").latents
    forms = [
        MASK.astype(np.uint8),
        torch.from_numpy(MASK),
        torch.from_numpy(MASK).float(),
        torch.from_numpy(MASK).bfloat16(),
    ]
    pictures = [
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8) * 255),
        Image.fromarray(MASK.astype(np.uint8)),
    ]
    for form in (*forms, *pictures):
        assert torch.equal(edit(pipe, mask=form, output_type="latent").latents, expected)


def test_batches(pipe: MultimodalDiTPipeline) -> None:
    seeds = [generator(i) for i in range(2)]
    pair = edit(pipe, conditions={"rgb": [RGB, 255 - RGB]}, generator=seeds, output_type="latent").latents
    single = edit(pipe, conditions={"rgb": 255 - RGB}, generator=[generator(1)], output_type="latent").latents
    torch.testing.assert_close(pair[1:], single, atol=1e-4, rtol=1e-4)


def test_a_mask_is_resized_with_the_picture_and_small_marks_stay() -> None:
    mask = np.zeros((64, 48), dtype=bool)
    mask[63, 0] = True
    region = read_region(mask, 32, 24)
    assert region.given_size == (64, 48)
    assert region.inside.nonzero().tolist() == [[31, 0]]
    assert (~region.known(4)).nonzero().tolist() == [[7, 0]]
    assert region.known(4).shape == (8, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditions": None}, "mask says what to keep of a picture, and none is given: give conditions"),
        ({"mask": MASK[:16]}, "conditions differ in size .*rgb 32 x 32, mask 16 x 32"),
        ({"mask": MASK[None]}, r"mask has shape \(1, 32, 32\): give \(height, width\)"),
        ({"mask": MASK.astype(np.uint8) * 255}, "mask holds values from 0 to 255: give True or 1 = generate anew"),
        ({"mask": np.full((32, 32), np.nan)}, "mask holds values from nan to nan"),
        ({"mask": np.full((32, 32), "x")}, "mask holds values of type <U1"),
        ({"mask": np.zeros((0, 4))}, r"mask has shape \(0, 4\)"),
        ({"mask": ~MASK & MASK}, "mask is 0 everywhere, which keeps the whole picture"),
        ({"mask": torch.from_numpy(MASK).to_sparse()}, "mask is a sparse tensor: give"),
        ({"mask": MASK * 1j}, "mask holds values from"),
        ({"mask": np.ma.array(MASK, mask=MASK)}, "mask is an array with masked pixels: give mask.filled"),
        ({"mask": "mask.png"}, "mask is a str: give an array, a tensor or a PIL image"),
        ({"num_estimation_steps": 0}, "num_estimation_steps is 0: give a whole number, at least 1"),
    ],
)
def test_bad_masks(pipe: MultimodalDiTPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        edit(pipe, **arguments)
    assert "\n" not in str(caught.value)


def test_what_is_kept_is_exact_whatever_a_callback_leaves(pipe: MultimodalDiTPipeline) -> None:
    def spoil(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._interrupt = step == 1
        return {"latents": tensors["latents"] + 1}

    kept = edit(pipe, output_type="latent").latents
    spoilt = edit(pipe, output_type="latent", callback_on_step_end=spoil).latents
    assert torch.equal(spoilt[..., KNOWN], kept[..., KNOWN])
    assert not torch.equal(spoilt, kept)


def test_conditions_of_another_type_are_refused_beside_a_mask(pipe: MultimodalDiTPipeline) -> None:
    with pytest.raises(UserError, match="conditions is a ndarray: give modality -> value"):
        edit(pipe, conditions=RGB)


def test_a_photograph_is_no_mask() -> None:
    """Soft edges and a JPEG's ripples are."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    with pytest.raises(UserError, match=r"mask is neither black nor white in 62% of its pixels: give a mask, white = "):
        read_region(Image.fromarray(ramp), 8, 32)
    soft = np.clip((ramp.astype(int) - 128) * 3 + 128, 0, 255).astype(np.uint8)
    assert read_region(Image.fromarray(soft), 64, 256).given.float().mean() == pytest.approx(0.5, abs=0.01)
