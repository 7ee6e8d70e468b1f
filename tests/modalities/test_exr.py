"""OpenEXR files; without the library, the line that says how to get it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.modalities.depth import DepthCodec
from mmdit.modalities.normal import NormalCodec
from mmdit.modalities.rgb import RGBCodec, read_picture
from mmdit.modalities.segmentation import SegmentationCodec

installed = importlib.util.find_spec("OpenEXR") is not None
RNG = np.random.default_rng(0)
DEPTH = RNG.uniform(1, 9, (6, 8)).astype(np.float32)


def write(path: Path, **channels: np.ndarray) -> Path:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))
    return path


@pytest.mark.skipif(installed, reason="the library is there")
def test_the_library_is_named(tmp_path):
    (tmp_path / "d.exr").write_bytes(b"v/1\x01")
    with pytest.raises(UserError, match=r"d\.exr: OpenEXR files need a library: pip install 'multimodal-dit\[exr\]'"):
        DepthCodec().read(tmp_path / "d.exr")


@pytest.mark.skipif(not installed, reason="needs OpenEXR")
def test_depth_is_metres_as_it_is(tmp_path):
    for path, channels in (
        ("z.exr", {"Z": DEPTH}),
        ("half.EXR", {"Y": DEPTH.astype(np.float16)}),
        ("grey.exr", {"RGB": np.stack([DEPTH] * 3, axis=-1)}),
        ("layer.exr", {"view.Z": DEPTH, "view.A": DEPTH}),
    ):
        read = DepthCodec().read(write(tmp_path / path, **channels), {"depth_scale": 0.001}).values
        np.testing.assert_allclose(read, DEPTH, rtol=1e-3)
    given = DepthCodec().read(tmp_path / "z.exr")
    assert not given.relative
    assert "read as distances" in given.note


@pytest.mark.skipif(not installed, reason="needs OpenEXR")
def test_vectors(tmp_path):
    vectors = RNG.normal(size=(6, 8, 3)).astype(np.float32)
    x, y, z = (np.ascontiguousarray(vectors[..., c]) for c in range(3))
    for path in (write(tmp_path / "rgb.exr", RGB=vectors), write(tmp_path / "xyz.exr", X=x, Y=y, Z=z)):
        np.testing.assert_array_equal(NormalCodec().read(path).values, vectors)
    with pytest.raises(UserError, match=r"z\.exr: has the channels Z: give R, G, B or X, Y, Z"):
        NormalCodec().read(write(tmp_path / "z.exr", Z=DEPTH))
    with pytest.raises(UserError, match=r"\.exr files are not read for rgb"):
        read_picture(tmp_path / "rgb.exr")


@pytest.mark.skipif(not installed, reason="needs OpenEXR")
def test_damaged_files(tmp_path):
    good = write(tmp_path / "z.exr", Z=DEPTH).read_bytes()
    (tmp_path / "cut.exr").write_bytes(good[:-40])
    (tmp_path / "text.exr").write_text("hello")
    for name in ("cut", "text"):
        with pytest.raises(UserError, match=rf"{name}\.exr: not a readable OpenEXR file"):
            DepthCodec().read(tmp_path / f"{name}.exr")
    start = good.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    window = np.array([0, 0, 10**6, 10**6], "<i4").tobytes()
    (tmp_path / "huge.exr").write_bytes(good[:start] + window + good[start + 16 :])
    with pytest.raises(UserError, match=r"huge\.exr: the image has more than"):
        DepthCodec().read(tmp_path / "huge.exr")


@pytest.mark.skipif(not installed, reason="needs OpenEXR")
def test_what_is_written_is_read_back(tmp_path):
    vectors = RNG.normal(size=(6, 8, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    relative = RNG.uniform(0, 1, (6, 8)).astype(np.float32)
    for codec, raw in ((DepthCodec(space="depth"), relative), (NormalCodec(), vectors)):
        path = tmp_path / codec.exr_name
        path.write_bytes(codec.exr(raw))
        reading = codec.read(path)
        np.testing.assert_array_equal(reading.values, raw)
        assert reading.note is None  # depth names its space
    assert (RGBCodec().exr_name, SegmentationCodec().exr_name) == (None, None)
