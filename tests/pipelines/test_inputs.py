"""The ways in which a call is asked: images first, mixed batches, seeds, the model's own defaults, sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.pipelines.arguments import seeded
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.sizes import processing_size
from mmdit.task import Role

MakePipeline = Callable[..., MultimodalDiTPipeline]
RNG = np.random.default_rng(0)
ONE, TWO = (RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
IMAGE = Image.fromarray(ONE)
METRES = RNG.uniform(1, 9, (32, 32)).astype(np.float32)


def latents_of(pipe: MultimodalDiTPipeline, *first: Any, **arguments: Any) -> Tensor:
    return pipe(*first, **({"seed": 0, "output_type": "latent", "num_inference_steps": 2} | arguments)).latents


def test_an_image_first_is_understanding(pipe: MultimodalDiTPipeline) -> None:
    expected = latents_of(pipe, conditions={"rgb": IMAGE}, num_inference_steps=1)
    assert torch.equal(latents_of(pipe, IMAGE, num_inference_steps=None), expected)
    assert pipe.num_timesteps == 1
    several = latents_of(pipe, [IMAGE, Image.fromarray(TWO)], seed=[0, 1])
    assert torch.equal(several, latents_of(pipe, conditions={"rgb": [ONE, TWO]}, seed=[0, 1]))
    both = latents_of(pipe, IMAGE, conditions={"depth": METRES})
    assert torch.equal(both, latents_of(pipe, conditions={"rgb": ONE, "depth": METRES}))


def test_steps_and_guidance_of_a_call_that_names_none(make_pipeline: MakePipeline) -> None:
    own = make_pipeline()
    pipe = MultimodalDiTPipeline(
        **own.components, **own.parameters, defaults={"num_inference_steps": 4, "guidance_scale": 3.0}
    )
    pipe.set_progress_bar_config(disable=True)

    def steps(**arguments: Any) -> tuple[int, float]:
        latents_of(pipe, num_inference_steps=None, **arguments)
        return pipe.num_timesteps, pipe.guidance_scale

    assert own.defaults.num_inference_steps == 25
    assert own.defaults.guidance_scale == 2.0
    assert "defaults" not in own.config
    assert steps() == (4, 3.0)
    assert steps(class_labels=1, guidance_scale=1.5) == (4, 1.5)
    assert steps(conditions={"rgb": ONE}) == (1, 3.0)
    assert steps(conditions=[{"rgb": ONE}, {"rgb": TWO}]) == (1, 3.0)
    assert steps(conditions={"rgb": ONE}, class_labels="cone") == (4, 3.0)
    assert steps(conditions={"depth": METRES}) == (4, 3.0)
    assert steps(conditions=[{"rgb": ONE}, None]) == (4, 3.0)
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    assert steps(conditions={"rgb": ONE}, mask=mask) == (4, 3.0)


def test_batches_of_different_conditions(pipe: MultimodalDiTPipeline) -> None:
    samples = [{"rgb": ONE}, {"depth": METRES, "rgb": None}, None, {"rgb": TWO, "depth": METRES}]
    labels = ["cone", None, 2, None]
    seeds = [3, 4, 5, 6]
    common: dict[str, Any] = {"condition_guidance_scale": 1.5}
    out = latents_of(pipe, labels, conditions=samples, seed=seeds, **common)
    lists = {"rgb": [ONE, None, None, TWO], "depth": [None, METRES, None, METRES]}
    assert torch.equal(latents_of(pipe, labels, conditions=lists, seed=seeds, **common), out)
    for i, sample in enumerate(samples):
        given = {name: value for name, value in (sample or {}).items() if value is not None}
        alone = latents_of(pipe, labels[i], conditions=given, seed=[seeds[i]], **common)
        torch.testing.assert_close(out[i : i + 1], alone, atol=1e-4, rtol=1e-4)

    maps = pipe(labels, conditions=samples, seed=seeds, num_inference_steps=1)
    assert np.array_equal(np.asarray(maps.rgb[0]), ONE)  # as given
    assert np.array_equal(np.asarray(maps.rgb[3]), TWO)
    depth = pipe.codecs["depth"].decode(pipe.codecs["depth"].encode(METRES)[None])[0]
    np.testing.assert_allclose(maps.depth[1], depth, atol=1e-6)
    np.testing.assert_allclose(maps.depth[3], depth, atol=1e-6)
    assert np.abs(maps.depth[0] - depth).max() > 1e-2


def test_a_mixed_batch_with_several_images_and_a_mask(pipe: MultimodalDiTPipeline) -> None:
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    out = pipe(conditions=[{"rgb": ONE}, {"depth": METRES}], mask=mask, num_images=2, seed=0, num_inference_steps=1)
    assert np.array_equal(np.asarray(out.rgb[1])[16:], ONE[16:])
    depth = pipe.codecs["depth"].decode(pipe.codecs["depth"].encode(METRES)[None])[0]
    np.testing.assert_allclose(out.depth[2][16:], depth[16:], atol=1e-6)


def test_samples_without_conditions_only(pipe: MultimodalDiTPipeline) -> None:
    assert torch.equal(latents_of(pipe, conditions=[None, {}]), latents_of(pipe, [None, None]))


def test_seeds_are_generators_on_the_cpu(pipe: MultimodalDiTPipeline) -> None:
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(latents_of(pipe, seed=7), latents_of(pipe, seed=None, generator=generator))
    two = latents_of(pipe, [1, 2], seed=[7, 8])
    made = [torch.Generator().manual_seed(i) for i in (7, 8)]
    assert torch.equal(two, latents_of(pipe, [1, 2], seed=None, generator=made))
    assert seeded(None, generator, 1) is generator


def test_maps_at_the_size_of_the_input(pipe: MultimodalDiTPipeline) -> None:
    photo = RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    small = pipe(Image.fromarray(photo), seed=0)
    out = pipe(Image.fromarray(photo), seed=0, match_input_resolution=True)
    assert np.array_equal(np.asarray(out.rgb[0]), photo)
    assert (small.depth.shape, out.depth.shape) == ((1, 32, 32), (1, 50, 70))
    for name in ("depth", "normal", "segmentation"):
        expected = pipe.codecs[name].resize_output(small[name][0], 50, 70)
        np.testing.assert_array_equal(out[name][0], expected)
    np.testing.assert_allclose(np.linalg.norm(out.normal, axis=-1), 1, atol=1e-5)
    tensors = pipe([Image.fromarray(photo)] * 2, seed=0, match_input_resolution=True, output_type="pt")
    assert tensors.rgb.shape == (2, 3, 50, 70)


def test_processing_resolution(pipe: MultimodalDiTPipeline) -> None:
    photo = Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert pipe(photo, seed=0, processing_resolution=48).depth.shape == (1, 32, 48)
    out = pipe(photo, seed=0, processing_resolution=48, match_input_resolution=True)
    assert out.depth.shape == (1, 50, 70)
    assert pipe(seed=0, processing_resolution=16, num_inference_steps=1).depth.shape == (1, 16, 16)
    assert processing_size(64, (10, 1000), 8) == (8, 64)
    assert processing_size(64, (1000, 500), 8) == (64, 32)


@pytest.mark.parametrize(
    ("first", "arguments", "message"),
    [
        ([IMAGE, "cone"], {}, "the first argument holds images and a str: give images alone, or class labels alone"),
        (ONE, {}, "the first argument holds arrays: give PIL images to understand, or arrays as conditions="),
        ([torch.zeros(3, 8, 8)], {}, "the first argument holds arrays"),
        (IMAGE, {"conditions": {"rgb": ONE}}, "an image is given twice, first and as"),
        (IMAGE, {"conditions": [{"depth": METRES}]}, "images are given beside a list of conditions"),
        ("photo.JPG", {}, "class label 'photo.JPG' is a path: open it with PIL.Image.open, and give the image"),
        (Path("a.png"), {}, "class label 'a.png' is a path"),
        ("https://a.b/c", {}, "class label 'https://a.b/c' is a URL: download it, and open it with PIL.Image.open"),
        (None, {"conditions": []}, "conditions is an empty list: give the conditions of each sample"),
        (None, {"conditions": [{"rgb": [ONE, TWO]}]}, r"conditions\[0\]: condition 'rgb' holds 2 values"),
        (None, {"conditions": [None, {"rbg": ONE}]}, r"conditions\[1\]: unknown modality in conditions 'rbg'"),
        (None, {"conditions": [None, "a.png"]}, r"conditions\[1\] is a str: give modality -> value for each"),
        (None, {"conditions": [None, None], "seed": [1]}, "seed is a list of 1 for 2"),
        (None, {"seed": 1, "generator": torch.Generator()}, "seed and generator are both given: give one"),
        (None, {"seed": -1}, "seed is or holds -1: give a whole number from 0 to"),
        (None, {"seed": [0, 1.5]}, "seed is or holds 1.5"),
        (None, {"seed": True}, "seed is or holds True"),
        (None, {"seed": [0, 1]}, "seed is a list of 2 for 1 samples: give one per sample, or one for all"),
        (None, {"processing_resolution": 30}, "processing_resolution is 30: give a multiple of 8 pixels, such as 32"),
        (None, {"processing_resolution": "64"}, "processing_resolution is '64'"),
        (None, {"processing_resolution": 64, "height": 32}, "processing_resolution is given beside height or width"),
        (None, {"match_input_resolution": True}, "match_input_resolution is True, but nothing is given: leave it out"),
        (
            [IMAGE, IMAGE.resize((16, 32))],
            {"match_input_resolution": True},
            r"images differ in size \(height x width\): 32 x 32, 32 x 16; give images of one size",
        ),
    ],
)  # fmt: skip
def test_bad_input(pipe: MultimodalDiTPipeline, first: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pipe(first, **arguments)
    assert "\n" not in str(caught.value)


def test_roles_of_a_mixed_batch(pipe: MultimodalDiTPipeline) -> None:
    seen: list[Tensor] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].clone()))
    latents_of(pipe, conditions=[{"rgb": ONE}, None, {"depth": METRES}], num_inference_steps=1)
    handle.remove()
    given, made = int(Role.CONDITION), int(Role.GENERATE)
    assert seen[0].tolist() == [[given, made, made, made], [made] * 4, [made, given, made, made]]


def test_names_of_files_are_no_categories(make_pipeline: MakePipeline) -> None:
    with pytest.raises(UserError, match=r"class label 'a\.png' is a path"):
        make_pipeline(names=False)("a.png")
