"""``mmdit mesh`` on folders as the other commands write them."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from analytic_scene import analytic_scene
from chamfer import chamfer_distance
from PIL import Image

from mmdit.cli.common.output import Sample, SampleWriter
from mmdit.modalities import get_modalities

trimesh = pytest.importorskip("trimesh")


@pytest.fixture(scope="module")
def scene():
    return analytic_scene(2 * np.degrees(np.arctan(40 / 60)), 60, 80)


@pytest.fixture
def sample(tmp_path, scene):
    """What ``analytic_scene`` is, seen with 67.4 degrees: disparity, 80 x 60 pixels (width x height)."""
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    relative, normal = scene.relative["disparity"].astype(np.float32), scene.normal.astype(np.float32)
    modalities = get_modalities(["rgb", "depth", "normal"])
    arrays = {"rgb": rgb, "depth": relative, "normal": normal}
    return SampleWriter(tmp_path / "outputs", modalities).write(Sample("ball_0", arrays, {"seed": 0}))


def test_mesh_in_the_folder_with_a_given_camera(mmdit, sample, scene):
    near, far = scene.distances.min(), scene.distances.max()
    result = mmdit("mesh", sample, "--focal", 60, "--depth_range", near, far)
    assert result.code == 0, result.err
    said = f"field of view 67.4° (focal length 60.0 px of 80); distances {near:.4g} to {far:.4g}"
    assert result.out == f"{sample}/mesh.glb: {said}\n"
    cloud = trimesh.load(io.BytesIO((sample / "points.ply").read_bytes()), file_type="ply")
    assert chamfer_distance(np.asarray(cloud.vertices), scene.points.reshape(-1, 3)) < 0.02
    loaded = trimesh.load(io.BytesIO((sample / "mesh.glb").read_bytes()), file_type="glb")
    assert loaded.camera.fov[1] == pytest.approx(2 * np.degrees(np.arctan(0.5)), abs=0.1)  # the vertical one
    again = SampleWriter(sample.parent, get_modalities(["rgb", "depth", "normal"]))
    again.check({"ball_0": {"seed": 0}}, 1)  # meshes are no foreign files


def test_camera_is_estimated_and_said(mmdit, sample, tmp_path):
    other = tmp_path / "other" / "ball_0"
    shutil.copytree(sample, other)
    result = mmdit("mesh", sample, other, "--output", "out", "--max_size", 40)
    assert result.code == 0, result.err
    first, second = result.out.splitlines()
    assert first.startswith("out/ball_0/mesh.glb: field of view ")
    assert "px of 80), estimated: " in first
    assert "the scale is unknown" in first
    assert second.split(": ", 1)[1] == first.split(": ", 1)[1]
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert len(made) == 4
    assert not (sample / "mesh.glb").exists()
    (solid,) = trimesh.load(io.BytesIO((tmp_path / "out" / made[0]).read_bytes()), file_type="glb").geometry.values()
    assert len(solid.vertices) <= 40 * 30
    assert solid.visual.material.baseColorTexture.size == (80, 60)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "missing SAMPLE_FOLDER"),
        (["nowhere"], "nowhere: no such folder; give a sample's folder"),
        (["outputs"], "outputs: is no sample's folder, it has no metadata.json"),
        (["outputs/ball_0/rgb.png"], "outputs/ball_0/rgb.png: is a file; give a sample's folder"),
        (
            ["outputs/ball_0", "--fov", "50", "--focal", "60"],
            "--fov 50 and --focal 60 are both given: give one of the two",
        ),
        (["outputs/ball_0", "--fov", "180"], "--fov is 180: give the horizontal field of view in degrees"),
        (["outputs/ball_0", "--focal", "-1"], "--focal is -1: give a number above 0"),
        (["outputs/ball_0", "--depth_range", "4", "1"], "--depth_range is 4 1: give two rising numbers above 0"),
        (["outputs/ball_0", "--focal", "1e-9"], "--focal is 1e-09: give 0.349 to 4.58e+03 for an image 80 wide"),
        (["outputs/ball_0", "--focal", "1e9"], "--focal is 1e+09: give 0.349 to 4.58e+03"),
        (["outputs/ball_0", "--depth_range", "1e-300", "1e300"], "give two numbers such as 0.5 8, the far end at most"),
        (["outputs/ball_0", "--depth_range", "1e10", "2e10"], "and at most 1e+09"),
        (["outputs/ball_0", "--output", "flat/rgb.png"], "flat/rgb.png: is a file; --output is a folder"),
        (["outputs/ball_0", "--depth_range", "4"], "--depth_range: expected 2 arguments"),
        (["outputs/ball_0", "--depth_range", "a", "b"], "--depth_range: expected float, got a"),
        (["flat"], "flat: 0 of 4800 pixels show a smooth surface, too few to estimate a camera"),
        (["bare"], "bare: has no normals to estimate the field of view and the depth range from"),
        (["odd"], "odd: its maps differ in size (height x width): rgb 60 x 80, depth 5 x 5, normal 60 x 80"),
        (["unsaid"], "unsaid/metadata.json: depth_space is None: must be one of depth, disparity"),
    ],
)
def test_bad_input(mmdit, sample, tmp_path, arguments, expected):
    for name in ("flat", "bare", "odd", "unsaid"):
        shutil.copytree(sample, tmp_path / name)
    np.save(tmp_path / "flat" / "depth.npy", np.full((60, 80), 0.5, np.float32))
    (tmp_path / "bare" / "normal.npy").unlink()
    np.save(tmp_path / "odd" / "depth.npy", np.ones((5, 5), np.float32))
    (tmp_path / "unsaid" / "metadata.json").write_text(json.dumps({"seed": 0}))
    result = mmdit("mesh", *arguments)
    assert result.code == 2, result.err
    assert expected in result.error


def test_without_the_library(mmdit, sample, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "trimesh", None)
    assert mmdit("mesh", sample).error.endswith("meshes need trimesh: pip install 'multimodal-dit[mesh]'")


def test_a_picture_alone_is_no_sample(mmdit, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    assert "it has no metadata.json" in mmdit("mesh", tmp_path).error
