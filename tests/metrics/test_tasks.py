"""Each task is the pipeline's own call, with the noise of each sample its own; the time is per sample."""

import numpy as np
import torch

from mmdit.encoders.codec import LatentCodec
from mmdit.metrics.feature_networks import find_teacher
from mmdit.metrics.maps import sample_generators
from mmdit.metrics.samples import GroundTruth
from mmdit.metrics.tasks import TaskRunner, can_condition, class_labels, reconstruct
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def test_native_size_and_reconstruction(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    assert pipe.native_size == 64
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = reconstruct(pipe, {"rgb": images, "depth": images})
    codec = LatentCodec(pipe.vae, pipe.modalities)
    with torch.no_grad():
        expected = codec.decode(codec.latents(codec.moments(images), "rgb"), "rgb")
    np.testing.assert_array_equal(out["rgb"], pipe.codecs["rgb"].decode(expected))
    assert out["depth"].shape == (2, 64, 64)


def test_a_model_without_a_teacher_has_none(tiny_pipeline_dir):
    assert find_teacher(MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)) is None


def test_any_change_of_the_weights_changes_their_digest(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    digest = pipe.weights_digest()
    assert len(digest) == 16
    assert MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir).weights_digest() == digest
    bias = pipe.vae.decoder.conv_out.bias
    with torch.no_grad():
        bias[0] += 0.5
    changed = pipe.weights_digest()
    with torch.no_grad():
        bias[0] -= 0.5
    assert len({digest, changed, pipe.to(torch.bfloat16).weights_digest()}) == 3


def _samples(count, size=64):
    draw = np.random.default_rng(0)
    return [
        GroundTruth(
            number,
            str(number),
            ("torus", "dinosaur", None)[number % 3],
            {
                "rgb": draw.integers(0, 256, (size, size, 3), dtype=np.uint8),
                "depth": draw.uniform(0.1, 0.9, (size, size)).astype(np.float32),
            },
        )
        for number in range(count)
    ]


def test_tasks_are_the_pipelines_calls_whatever_the_batch(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    samples, images = _samples(2), [sample.maps["rgb"] for sample in _samples(2)]
    steps = {"understanding": 1, "conditioning": 2, "generation": 2}
    tasks = TaskRunner(pipe, steps, guidance_scale=2.0, seed=5)
    understood, again = tasks.understand(images, [0, 1]), tasks.understand(images, [0, 1], noise="reestimation")
    assert not np.array_equal(understood[0]["depth"], again[0]["depth"])
    conditioned, generated = tasks.condition("depth", samples), tasks.generate(["torus", None], [0, 1])
    metres = samples[1].maps["depth"] * np.float32(10 / samples[1].maps["depth"].max())  # not taken for a relative map
    for task, arguments, found in (
        ("understanding", {"conditions": {"rgb": [images[1]]}, "num_inference_steps": 1}, understood),
        ("depth", {"conditions": {"depth": [metres]}, "num_inference_steps": 2}, conditioned),
        ("generation", {"class_labels": [None], "guidance_scale": 2.0, "num_inference_steps": 2}, generated),
    ):
        expected = pipe(**arguments, generator=sample_generators(5, task, [1]), output_type="np")
        for name in found[1]:
            ours = found[1][name] / 255 if name == "rgb" else found[1][name]
            np.testing.assert_allclose(ours, expected[name][0], atol=0.5 / 255 + 1e-4, err_msg=f"{task} {name}")
    assert found[1].keys() == pipe.modalities.keys()
    assert all(mean.compute() > 0 for mean in tasks.seconds.values())


def test_class_labels_with_and_without_names(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    assert class_labels(pipe, _samples(3), ["torus"]) == ["torus", None, None]
    nameless = MultimodalDiTPipeline(**pipe.components, modalities=pipe.modalities)
    assert class_labels(nameless, _samples(3), ["dinosaur", "torus"]) == [1, 0, None]
    too_many = [str(number) for number in range(1000)]
    assert class_labels(nameless, _samples(3), [*too_many, "torus"]) == [None, None, None]


def test_depth_without_a_valid_pixel_is_no_condition(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    (sample,) = _samples(1)
    assert can_condition(pipe, "depth", sample)
    assert not can_condition(pipe, "normal", sample)
    empty = GroundTruth(0, "0", None, {"depth": np.zeros((4, 4), np.float32)})
    assert not can_condition(pipe, "depth", empty)
