"""What an output can draw and export, in every form it may have."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle

import numpy as np
import pytest
from diffusers.pipelines.marigold import MarigoldImageProcessor
from PIL import Image

from mmdit.cli.common.output import Sample, sample_files
from mmdit.errors import UserError
from mmdit.modalities.depth import DepthCodec
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.pipeline_output import MultimodalDiTPipelineOutput


@pytest.fixture
def outputs(pipe: MultimodalDiTPipeline) -> dict[str, MultimodalDiTPipelineOutput]:
    return {kind: pipe(num_images=2, num_inference_steps=1, seed=0, output_type=kind) for kind in ("pil", "np", "pt")}


def test_pictures_are_those_of_the_command_line(pipe, outputs):
    arrays = {name: outputs["pil"].raw(name)[1] for name in pipe.modalities}
    files = sample_files(Sample("a", arrays, {}), pipe.modalities)
    for out in outputs.values():
        for name in pipe.modalities:
            np.testing.assert_array_equal(out.raw(name)[1], arrays[name])
        drawn = {
            "depth_vis.png": out.visualize_depth(),
            "normal.png": out.visualize_normal(),
            "rgb.png": out.visualize("rgb"),
        }
        exported = out.export_depth_to_16bit_png()
        for name, images in {**drawn, "depth.png": exported}.items():
            np.testing.assert_array_equal(np.asarray(images[1]), np.asarray(Image.open(io.BytesIO(files[name]))))
        assert out.visualize("segmentation")[0].mode == "RGB"
    assert exported[0].mode == "I;16"


def test_pictures_are_marigolds_where_they_are_asked_for(outputs):
    out = outputs["np"]
    near = 1 - out.depth  # the tiny model's space is disparity
    for color_map in ("Spectral", "binary"):
        for ours, theirs in zip(
            out.visualize_depth(color_map=color_map),
            MarigoldImageProcessor.visualize_depth(near[..., None], color_map=color_map),
            strict=True,
        ):
            np.testing.assert_allclose(np.asarray(ours).astype(int), np.asarray(theirs).astype(int), atol=3)
    ours = np.asarray(out.visualize_normal(flip_x=True)[0]).astype(int)
    theirs = np.asarray(MarigoldImageProcessor.visualize_normals(out.normal.copy(), flip_x=True)[0]).astype(int)
    np.testing.assert_allclose(ours, theirs, atol=1)
    halved = out.visualize_depth(val_min=0.25, val_max=0.75)[0]
    expected = DepthCodec("disparity").picture(((out.depth[0] - 0.25) / 0.5).clip(0, 1))
    np.testing.assert_array_equal(np.asarray(halved), expected)


def test_exported_depth_comes_back(pipe, outputs, tmp_path):
    out = outputs["pil"]
    codec = pipe.codecs["depth"]
    for reading in map(codec.read, out.export_depth_to_16bit_png()[:1]):
        assert reading.relative
        assert reading.note is None
        np.testing.assert_allclose(reading.values / 65535, out.depth[0], atol=1e-5)
    inverted = np.asarray(out.export_depth_to_16bit_png(invert=True)[0])
    np.testing.assert_allclose(inverted / 65535, 1 - out.depth[0], atol=1e-5)
    if importlib.util.find_spec("OpenEXR"):
        (tmp_path / "d.exr").write_bytes(out.export_depth_to_exr()[1])
        reading = codec.read(tmp_path / "d.exr")
        assert (reading.relative, reading.note) == (True, None)
        np.testing.assert_array_equal(reading.values, out.depth[1])
        with pytest.raises(UserError, match="holds relative disparity, this model takes relative depth"):
            DepthCodec("depth").read(tmp_path / "d.exr")


def test_an_output_can_be_copied(outputs):
    for made in (copy.deepcopy(outputs["np"]), pickle.loads(pickle.dumps(outputs["np"]))):
        np.testing.assert_array_equal(made.depth, outputs["np"].depth)
        assert len(made.visualize_depth()) == 2


def test_bad_input(pipe, outputs):
    out = outputs["pil"]
    for call, message in (
        (lambda: out.visualize("dept"), "unknown modality 'dept'"),
        (
            lambda: out.visualize_depth(color_map="nonsense"),
            "color_map is 'nonsense': give Spectral, binary, or one of",
        ),
        (lambda: out.visualize_depth(val_min=1, val_max=0), "val_min is 1 and val_max 0: give two rising numbers"),
        (out.visualize_uncertainty, "no uncertainty of 'depth'; there is none: call with ensemble_size"),
        (lambda: pipe(num_inference_steps=1, output_type="latent").visualize("rgb"), "the output holds latents alone"),
    ):
        with pytest.raises(UserError, match=message):
            call()
