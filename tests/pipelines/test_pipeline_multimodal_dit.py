from __future__ import annotations

import copy
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
from mmdit.task import Role

MakePipeline = Callable[..., MultimodalDiTPipeline]
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
METRES = RNG.uniform(1, 9, (32, 32)).astype(np.float32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: MultimodalDiTPipeline, **arguments: Any) -> Tensor:
    defaults: dict[str, Any] = {"num_inference_steps": 3, "generator": generator(), "output_type": "latent"}
    return pipe(**(defaults | arguments)).latents


def test_types_of_the_outputs(pipe: MultimodalDiTPipeline) -> None:
    arguments: dict[str, Any] = {"class_labels": ["torus", 1], "num_inference_steps": 2}
    pil = pipe(**arguments, generator=generator())
    assert list(pil) == ["rgb", "depth", "normal", "segmentation"]
    assert [image.size for image in pil.rgb] == [(32, 32)] * 2
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in pil.rgb)
    assert (pil.depth.shape, pil.depth.dtype) == ((2, 32, 32), np.float32)
    assert (pil.normal.shape, pil.normal.dtype) == ((2, 32, 32, 3), np.float32)
    assert (pil.segmentation.shape, pil.segmentation.dtype) == ((2, 32, 32), np.int64)
    assert pil.depth.min() >= 0
    assert pil.depth.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(pil.normal, axis=-1), 1, atol=1e-5)
    assert set(np.unique(pil.segmentation)) <= {0, 1, 7}  # ids of the dataset, not rows of the palette
    assert pil.latents is None

    array = pipe(**arguments, generator=generator(), output_type="np")
    assert (array.rgb.shape, array.rgb.dtype) == ((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(array.rgb * 255, np.stack([np.asarray(image) for image in pil.rgb]), atol=1e-3)
    tensor = pipe(**arguments, generator=generator(), output_type="pt")
    torch.testing.assert_close(tensor.rgb.permute(0, 2, 3, 1), torch.from_numpy(array.rgb))
    for name in ("depth", "normal", "segmentation"):
        assert torch.equal(tensor[name], torch.from_numpy(pil[name]))
    latent = pipe(**arguments, generator=generator(), output_type="latent")
    assert list(latent) == ["latents"]
    assert (latent.latents.shape, latent.latents.dtype) == ((2, 4, 4, 8, 8), torch.float32)


def test_tuple_equals_dict(pipe: MultimodalDiTPipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    fields = pipe(**arguments, generator=generator())
    values = pipe(**arguments, generator=generator(), return_dict=False)
    assert isinstance(values, tuple)
    for field, value in zip(fields.to_tuple(), values, strict=True):
        assert np.array_equal(field, value)


def test_models_with_other_modalities(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pipeline(modalities=["depth", "rgb"])
    out = pair(num_inference_steps=1)
    assert out.segmentation is None
    assert out.normal is None
    assert list(out) == ["rgb", "depth"]  # rgb is first whatever the order of the modalities
    from mmdit.modalities import MODALITIES, Modality

    monkeypatch.setitem(MODALITIES, "albedo", Modality("albedo", "rgb"))
    out = make_pipeline(modalities=["rgb", "albedo"])(num_inference_steps=1, num_images=2)
    assert [image.size for image in out.albedo] == [(32, 32)] * 2
    assert out["albedo"] is out.albedo


def test_decoding_is_the_codecs(pipe: MultimodalDiTPipeline) -> None:
    latents = latents_of(pipe)
    out = pipe(num_inference_steps=3, generator=generator())
    with torch.no_grad():
        images = LatentCodec(pipe.vae, pipe.modalities).decode_all(latents)
    for index, name in enumerate(pipe.modalities):
        expected = pipe.codecs[name].decode(images[:, index])
        tolerance = 1 if name == "rgb" else 1e-5  # one grey level: the VAE's batch differs
        np.testing.assert_allclose(np.stack([np.asarray(x) for x in out[name]]), expected, atol=tolerance)


def test_batch_equals_single(pipe: MultimodalDiTPipeline) -> None:
    batch = latents_of(pipe, class_labels=["sphere", "box", "cone"], generator=[generator(i) for i in range(3)])
    for i, name in enumerate(["sphere", "box", "cone"]):
        single = latents_of(pipe, class_labels=name, generator=[generator(i)])
        torch.testing.assert_close(batch[i : i + 1], single, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(single, latents_of(pipe, class_labels=name, generator=generator(i)))


def test_num_images_keeps_samples_of_a_label_together(pipe: MultimodalDiTPipeline) -> None:
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator()).expand(4, -1, -1, -1, -1)
    out = latents_of(pipe, class_labels=["sphere", "torus"], num_images=2, latents=noise)
    torch.testing.assert_close(out[0], out[1])
    torch.testing.assert_close(out[2], out[3])
    assert (out[0] - out[2]).abs().max() > 1e-3
    assert len(pipe("cone", num_images=3, num_inference_steps=1).rgb) == 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs_and_is_deterministic(make_pipeline: MakePipeline, scheduler: str) -> None:
    pipe = make_pipeline(scheduler)
    state = torch.get_rng_state()
    first = latents_of(pipe, class_labels=2, conditions={"rgb": RGB})
    assert torch.isfinite(first).all()
    assert torch.equal(first, latents_of(pipe, class_labels=2, conditions={"rgb": RGB}))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, latents_of(pipe, class_labels=2, conditions={"rgb": RGB}, generator=generator(1)))


def test_latents_are_the_initial_noise(pipe: MultimodalDiTPipeline) -> None:
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator())
    assert torch.equal(latents_of(pipe), latents_of(pipe, latents=noise, generator=None))
    assert torch.equal(latents_of(pipe, latents=noise.double()), latents_of(pipe, latents=noise))


def test_labels_and_conditions_broadcast(pipe: MultimodalDiTPipeline) -> None:
    assert len(latents_of(pipe, class_labels=[0, 1], conditions={"rgb": RGB})) == 2
    assert len(latents_of(pipe, class_labels=0, conditions={"rgb": [RGB, RGB]}, num_images=2)) == 4
    with pytest.raises(UserError, match="inputs differ in number: class_labels 2, rgb 3"):
        latents_of(pipe, class_labels=[0, 1], conditions={"rgb": [RGB] * 3})


def test_no_velocity_leaves_the_noise(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline(zero=True)  # adaLN-zero: the output is 0
    torch.testing.assert_close(latents_of(pipe, class_labels=1), torch.randn(1, 4, 4, 8, 8, generator=generator()))
    clean = make_pipeline(zero=True, prediction="sample")  # the clean latent is 0
    assert latents_of(clean, class_labels=1).abs().max() < 1e-5


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_the_loop_by_hand(make_pipeline: MakePipeline, prediction: str) -> None:
    """Three Euler steps with both guidances and an interval, written out."""
    pipe = make_pipeline(prediction=prediction)
    model, codec = pipe.transformer, LatentCodec(pipe.vae, pipe.modalities)
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator())
    with torch.no_grad():
        image = torch.from_numpy(RGB).permute(2, 0, 1)[None] / 127.5 - 1
        clean = codec.latents(codec.moments(image), "rgb")
        label, null = model.conditioner([3]), model.conditioner([None])
        given = torch.tensor([[Role.CONDITION] + [Role.GENERATE] * 3])
        absent = torch.tensor([[Role.ABSENT] + [Role.GENERATE] * 3])

        def velocity(x: Tensor, t: float, roles: Tensor, prompt: Any) -> Tensor:
            x, times = x.clone(), torch.full((1, 4), t)
            if roles is given:
                x[:, 0], times[:, 0] = 0.98 * clean + 0.02 * noise[:, 0], 0.02
            else:
                x[:, 0], times[:, 0] = noise[:, 0], 1.0
            out = model(x, times, roles, prompt).sample
            return out if prediction == "velocity" else (x - out) / times.clamp(min=0.03)[:, :, None, None, None]

        x = noise.clone()
        for t, t_next in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
            v = full = velocity(x, t, given, label)
            if t < 0.9:
                v = v + 2.0 * (full - velocity(x, t, given, null)) + 0.5 * (full - velocity(x, t, absent, label))
            x = x + (t_next - t) * v
        x[:, 0] = clean
    out = latents_of(
        pipe,
        class_labels="cone",
        conditions={"rgb": Image.fromarray(RGB)},
        guidance_scale=3.0,
        condition_guidance_scale=1.5,
        guidance_interval=(0.0, 0.9),
        condition_time=0.02,
    )
    torch.testing.assert_close(out, x, atol=2e-4, rtol=1e-3)


def test_conditions_stay_pinned_to_the_same_noise(pipe: MultimodalDiTPipeline) -> None:
    codec = LatentCodec(pipe.vae, pipe.modalities)
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator())
    with torch.no_grad():
        clean = codec.latents(codec.moments(pipe.codecs["depth"].encode(METRES)[None]), "depth")
    seen: list[Tensor] = []

    def look(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"][:, 1].clone())
        return tensors

    out = latents_of(pipe, conditions={"depth": METRES}, latents=noise, callback_on_step_end=look)
    assert len(seen) == 3
    for pinned in seen:
        torch.testing.assert_close(pinned, 0.995 * clean + 0.005 * noise[:, 1])
    torch.testing.assert_close(out[:, 1], clean)


def test_given_modalities_come_back_as_understood(pipe: MultimodalDiTPipeline) -> None:
    labels = RNG.choice([0, 1, 7], (32, 32))
    out = pipe(conditions={"rgb": RGB, "segmentation": labels, "depth": METRES}, num_inference_steps=1)
    assert np.array_equal(np.asarray(out.rgb[0]), RGB)  # as given, not through the VAE
    assert np.array_equal(out.segmentation[0], labels)
    np.testing.assert_allclose(out.depth, pipe.codecs["depth"].decode(pipe.codecs["depth"].encode(METRES)[None]))
    again = pipe(conditions={"depth": out.depth, "rgb": out.rgb}, num_inference_steps=1)  # its own output as input
    np.testing.assert_allclose(again.depth, out.depth, atol=0.03)


def test_guidance_changes_the_result_only_where_it_applies(pipe: MultimodalDiTPipeline) -> None:
    plain = latents_of(pipe, class_labels=1, guidance_scale=1)
    assert (latents_of(pipe, class_labels=1, guidance_scale=4) - plain).abs().max() > 1e-2
    torch.testing.assert_close(latents_of(pipe, class_labels=1, guidance_scale=4, guidance_interval=(0.9, 0.95)), plain)
    assert torch.equal(latents_of(pipe, guidance_scale=4), latents_of(pipe, guidance_scale=1))  # no label, no guidance
    given = {"conditions": {"rgb": RGB}}
    assert (latents_of(pipe, **given, condition_guidance_scale=3) - latents_of(pipe, **given)).abs().max() > 1e-2


def test_the_condition_matters(pipe: MultimodalDiTPipeline) -> None:
    first = latents_of(pipe, conditions={"rgb": RGB})
    assert (latents_of(pipe, conditions={"rgb": 255 - RGB}) - first)[:, 1:].abs().max() > 1e-3


def test_callback_sees_every_step_and_changes_the_latents(pipe: MultimodalDiTPipeline) -> None:
    steps: list[int] = []

    def callback(pipeline: MultimodalDiTPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        assert set(tensors) == set(pipe._callback_tensor_inputs)
        steps.append(step)
        if step == pipeline.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    out = latents_of(pipe, class_labels=1, callback_on_step_end=callback)
    assert out.abs().sum() == 0
    assert steps == [0, 1, 2]

    def without_tensors(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert tensors == {}
        return tensors

    unchanged = latents_of(pipe, callback_on_step_end=without_tensors, callback_on_step_end_tensor_inputs=[])
    assert torch.equal(unchanged, latents_of(pipe))


def test_callback_changes_the_guidance(pipe: MultimodalDiTPipeline) -> None:
    def raise_guidance(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._guidance_scale += 1.0
        return tensors

    changed = latents_of(pipe, class_labels=1, guidance_scale=2.0, callback_on_step_end=raise_guidance)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert (changed - latents_of(pipe, class_labels=1, guidance_scale=2.0)).abs().max() > 1e-3
    assert pipe.guidance_scale == 2.0
    assert pipe.do_classifier_free_guidance


def test_interrupt(pipe: MultimodalDiTPipeline) -> None:
    states: list[Tensor] = []

    def stop_after_two(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(tensors["latents"].clone())
        pipeline._interrupt = step == 1
        return tensors

    out = latents_of(pipe, num_inference_steps=5, callback_on_step_end=stop_after_two)
    assert len(states) == 2
    assert torch.equal(out, states[1])
    assert len(latents_of(pipe, num_inference_steps=5)) == 1
    assert not pipe.interrupt  # a new call starts afresh


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(pipe: MultimodalDiTPipeline, dtype: torch.dtype) -> None:
    expected = latents_of(pipe, class_labels=1, conditions={"rgb": RGB})
    pipe.to(dtype)
    assert (pipe.dtype, pipe.transformer.dtype, pipe.vae.dtype) == (dtype, dtype, dtype)
    out = latents_of(pipe, class_labels=1, conditions={"rgb": RGB})
    assert out.dtype == torch.float32  # the state of the sampler
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
    assert np.isfinite(pipe(num_inference_steps=1).normal).all()


def test_other_sizes(pipe: MultimodalDiTPipeline) -> None:
    out = pipe(height=24, width=40, num_inference_steps=1)
    assert out.depth.shape == (1, 24, 40)
    assert out.rgb[0].size == (40, 24)
    out = pipe(conditions={"rgb": RGB, "depth": METRES[:16]}, height=24, width=40, num_inference_steps=1)
    assert out.normal.shape == (1, 24, 40, 3)
    photo = Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert pipe(conditions={"rgb": photo}, num_inference_steps=1).depth.shape == (1, 32, 32)  # the model's own size


def test_vae_slicing_and_tiling(pipe: MultimodalDiTPipeline) -> None:
    expected = pipe(num_images=2, num_inference_steps=1, generator=generator()).depth
    pipe.enable_vae_slicing()
    assert pipe.vae.use_slicing
    np.testing.assert_allclose(
        pipe(num_images=2, num_inference_steps=1, generator=generator()).depth, expected, atol=1e-5
    )
    pipe.disable_vae_slicing()
    pipe.enable_vae_tiling()
    assert pipe.vae.use_tiling
    assert pipe(height=64, width=64, num_inference_steps=1).depth.shape == (1, 64, 64)
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_tiling
    assert not pipe.vae.use_slicing


def test_offloaded_weights(pipe: MultimodalDiTPipeline) -> None:
    accelerate = pytest.importorskip("accelerate")
    arguments: dict[str, Any] = {"class_labels": 1, "conditions": {"rgb": RGB}, "output_type": "np"}
    expected = pipe(**arguments, num_inference_steps=2, generator=generator())
    for model in (pipe.transformer, pipe.vae):
        accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    out = pipe(**arguments, num_inference_steps=2, generator=generator())
    assert pipe.transformer.blocks[0].attn.qkv.weight.is_meta
    for name in expected:
        np.testing.assert_allclose(out[name], expected[name], atol=1e-5)
    assert pipe.model_cpu_offload_seq.endswith("transformer->vae")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_model_offload_on_a_gpu(pipe: MultimodalDiTPipeline) -> None:
    pytest.importorskip("accelerate")
    arguments: dict[str, Any] = {"class_labels": 1, "conditions": {"rgb": RGB}, "output_type": "np"}
    expected = pipe.to("cuda")(**arguments, num_inference_steps=2, generator=generator()).depth
    for enable in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        offloaded = copy.deepcopy(pipe.to("cpu"))
        getattr(offloaded, enable)()
        for _ in range(2):
            depth = offloaded(**arguments, num_inference_steps=2, generator=generator()).depth
            np.testing.assert_allclose(depth, expected, atol=1e-3)


def test_training_mode_and_gradients_are_left_alone(pipe: MultimodalDiTPipeline) -> None:
    expected = latents_of(pipe, class_labels=[1] * 4)
    pipe.transformer.train()
    assert torch.equal(latents_of(pipe, class_labels=[1] * 4), expected)  # no label is dropped
    assert pipe.transformer.training
    assert not expected.requires_grad


def test_progress_bar(make_pipeline: MakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = make_pipeline("heun")
    pipe.set_progress_bar_config(disable=False)
    pipe(num_inference_steps=4)
    assert "4/4" in capsys.readouterr().err  # steps asked for, not the evaluations of a second-order scheme
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0: give a whole number, at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_images": 0}, "num_images is 0"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'"),
        ({"condition_time": 1.5}, "condition_time is 1.5"),
        ({"height": 30}, "height is 30: give a multiple of 8 pixels, such as 32"),
        ({"width": -8}, "width is -8"),
        ({"height": "32"}, "height is '32': give a whole number of pixels"),
        ({"width": 32.0}, r"width is 32\.0: give a whole number of pixels"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"conditions": [RGB]}, r"conditions\[0\] is a ndarray: give modality -> value"),
        ({"conditions": RGB}, "conditions is a ndarray: give modality -> value"),
        ({"guidance_scale": -1}, "guidance_scale is -1"),
        ({"guidance_interval": (0.6, 0.4)}, r"guidance_interval is \(0.6, 0.4\)"),
        ({"guidance_interval": 0.5}, r"guidance_interval is 0\.5: give \(low, high\)"),
        ({"guidance_interval": (0, 0.5, 1)}, "guidance_interval is .*: give"),
        ({"guidance_scale": "2"}, "guidance_scale is '2': give a number"),
        ({"condition_time": "0"}, "condition_time is '0'"),
        ({"generator": 0}, "generator is or holds a int: give torch.Generator"),
        ({"generator": ["0"]}, "generator is or holds a str"),
        ({"latents": np.zeros((1, 4, 4, 8, 8))}, "latents is a ndarray: give a tensor"),
        (
            {"callback_on_step_end": lambda *_: {"latents": torch.zeros(1, 1, 4, 8, 8)}},
            r"returned latents of shape \(1, 1,",
        ),
        ({"class_labels": "tours"}, "unknown category 'tours': did you mean 'torus'"),
        ({"class_labels": 5}, "class label 5"),
        ({"generator": [torch.Generator()] * 2}, "generator is a list of 2 for 1 samples"),
        ({"latents": torch.zeros(1, 4, 4, 8, 9)}, r"latents have shape \(1, 4, 4, 8, 9\): give \(1, 4, 4, 8, 8\)"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is a int: give a function, or None"),
        ({"callback_on_step_end_tensor_inputs": None}, "callback_on_step_end_tensor_inputs is None: give a list"),
        (
            {"callback_on_step_end_tensor_inputs": "latents"},
            "callback_on_step_end_tensor_inputs is 'latents': give a list",
        ),
        ({"callback_on_step_end": lambda *_: torch.zeros(2)}, "callback_on_step_end returned a Tensor: return {"),
        ({"callback_on_step_end": lambda *_: {"latents": 0}}, "callback_on_step_end returned latents that are a int"),
        ({"guidance_scale": True}, "guidance_scale is True: give a number"),
        ({"guidance_interval": (False, True)}, "guidance_interval is "),
        ({"condition_guidance_scale": True}, "condition_guidance_scale is True"),
        ({"condition_time": False}, "condition_time is False"),
        ({"match_input_resolution": "no"}, "match_input_resolution is 'no': give True or False"),
        ({"output_uncertainty": "yes"}, "output_uncertainty is 'yes': give True or False"),
        ({"return_dict": None}, "return_dict is None: give True or False"),
        ({"depth_values": "foo"}, "unknown depth_values 'foo'"),
        ({"latents": torch.zeros(1, 4, 4, 8, 8) * 1j}, "latents is a tensor of complex numbers"),
        ({"latents": torch.zeros(1, 4, 4, 8, 8, device="meta")}, "latents is a tensor on the meta device"),
        ({"class_labels": torch.zeros(1, dtype=torch.int64).to_sparse()}, "class_labels is a sparse tensor"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs 'noise'"),
        ({"conditions": {"dpeth": METRES}}, "'dpeth': did you mean 'depth'"),
        ({"conditions": {"rgb": RGB, "depth": METRES[:16]}}, "conditions differ in size"),
    ],
)
def test_bad_input(pipe: MultimodalDiTPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)


def test_names_of_classes_that_are_none(pipe: MultimodalDiTPipeline) -> None:
    parts = {**pipe.components, **pipe.parameters}
    for id2label in ({5: "more"}, {-1: "less"}):
        with pytest.raises(UserError, match=r"id2label holds .*, the transformer has 5 classes: give 0 to 4"):
            MultimodalDiTPipeline(**(parts | {"id2label": id2label}))


def test_names_need_names(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline(names=False)
    assert pipe.id2label == {}
    assert len(latents_of(pipe, class_labels=4)) == 1
    with pytest.raises(UserError, match="has no names"):
        pipe("torus")
