import numpy as np
import torch

from mmdit.encoders.codec import LatentCodec
from mmdit.pipelines.frozen import find_teacher, native_size, reconstruct, weights_digest
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def test_native_size_and_reconstruction(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    assert native_size(pipe) == 64
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
    digest = weights_digest(pipe)
    assert len(digest) == 16
    assert weights_digest(MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)) == digest
    bias = pipe.vae.decoder.conv_out.bias
    with torch.no_grad():
        bias[0] += 0.5
    changed = weights_digest(pipe)
    with torch.no_grad():
        bias[0] -= 0.5
    assert len({digest, changed, weights_digest(pipe.to(torch.bfloat16))}) == 3
