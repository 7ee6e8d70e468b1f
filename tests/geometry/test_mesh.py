"""Meshes against geometry in closed form, and of the bundled model's estimates against the scenes they are of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from chamfer import chamfer_distance
from PIL import Image

from mmdit.errors import UserError
from mmdit.geometry.camera import focal_of
from mmdit.geometry.mesh import make_mesh
from mmdit.geometry.surface import join, rays
from mmdit.metrics.depth import fit_scale_and_shift

trimesh = pytest.importorskip("trimesh")
EXAMPLES = Path(__file__).parents[2] / "mmdit/assets/scenes64_examples/test"
RGB = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def mesh_of(scene, **settings):
    given = {"focal": focal_of(40), "depth_range": (scene.distances.min(), scene.distances.max())} | settings
    return make_mesh(RGB, scene.relative["depth"], scene.normal, "depth", **given)


def test_exact_maps_give_the_exact_surface_torn_at_the_edge_of_the_ball(make_scene):
    scene = make_scene(40)
    mesh = mesh_of(scene)
    np.testing.assert_allclose(mesh.surface.points, scene.points, atol=1e-9, rtol=0.02)  # at the crease of the planes
    points, colors = mesh.points()
    assert chamfer_distance(points, scene.points.reshape(-1, 3)) < 0.01
    assert len(colors) == len(points)
    across = np.abs(np.diff(np.log(scene.distances), axis=1)) > 0.1  # from the ball to the wall
    assert across.sum() > 10
    assert not mesh.surface.right[across].any()
    assert mesh.surface.right[~across].mean() > 0.97
    solid = mesh.trimesh()
    facing = (solid.face_normals * solid.triangles_center).sum(axis=1)
    assert (facing < 0).all()  # towards the camera at 0
    angles = np.degrees(np.arccos((solid.face_normals * _normals_at(scene, solid)).sum(axis=1).clip(-1, 1)))
    assert np.median(angles) < 0.5


def _normals_at(scene, solid):
    """True normals at the pixel nearest to each face's centre."""
    centres = solid.triangles_center
    half = np.tan(np.radians(40) / 2)
    column = (centres[:, 0] / -centres[:, 2] / half + 1) * 32
    row = (1 - centres[:, 1] / -centres[:, 2] / half) * 32
    return scene.normal[row.astype(int), column.astype(int)]


def test_normals_mend_a_noisy_map(make_scene):
    scene, rng = make_scene(40), np.random.default_rng(0)
    noisy = scene.distances * np.exp(rng.normal(scale=0.01, size=(64, 64)))
    errors = [
        np.abs(np.linalg.norm(join(noisy, scene.normal, focal_of(40), refine=refine).points - scene.points, axis=-1))
        for refine in (True, False)
    ]
    assert errors[0].mean() < 0.5 * errors[1].mean()
    ray = rays(3, 5, focal_of(90))
    np.testing.assert_allclose(ray[1, :, 0], [-0.8, -0.4, 0, 0.4, 0.8], atol=1e-12)
    np.testing.assert_allclose(ray[:, 2, 1], [0.4, 0, -0.4], atol=1e-12)


def test_files_open_elsewhere(make_scene):
    scene = make_scene(40)
    mesh = mesh_of(scene, texture=np.kron(RGB, np.ones((2, 2, 1), np.uint8)))
    loaded = trimesh.load(io.BytesIO(mesh.glb()), file_type="glb")
    (solid,) = loaded.geometry.values()
    own = mesh.trimesh()
    np.testing.assert_allclose(solid.vertices, own.vertices, atol=1e-6)
    np.testing.assert_allclose(solid.vertex_normals, own.vertex_normals, atol=1e-6)
    texture = np.asarray(solid.visual.material.baseColorTexture.convert("RGB"))
    assert texture.shape == (128, 128, 3)
    column, row = (solid.visual.uv * [128, -128] + [0, 128]).astype(int).T
    points, colors = mesh.points()
    np.testing.assert_array_equal(texture[row, column], colors)
    assert loaded.camera.fov[0] == pytest.approx(40, abs=0.1)
    cloud = trimesh.load(io.BytesIO(mesh.ply()), file_type="ply")
    np.testing.assert_allclose(cloud.vertices, points, atol=1e-6)
    np.testing.assert_array_equal(cloud.colors[:, :3], colors)


def test_chamfer_distance_against_all_pairs():
    first, second = np.random.default_rng(0).normal(size=(2, 30, 3))
    second = second[:20]
    pairs = np.linalg.norm(first[:, None] - second[None], axis=-1)
    assert chamfer_distance(first, second) == pytest.approx((pairs.min(1).mean() + pairs.min(0).mean()) / 2)
    assert chamfer_distance(first, first) == 0
    with pytest.raises(ValueError, match="second is"):
        chamfer_distance(first, second[:0])


@pytest.mark.slow
def test_estimates_of_the_bundled_model_against_true_scenes():
    """RGB -> depth and normals -> mesh, in metres; a wrong field of view and unrefined depth are the controls."""
    from mmdit.pipelines.loading import bundled_models
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
    from mmdit.sources.scenes.layout import sample_layout

    if "scenes64" not in bundled_models():
        pytest.skip("the model is not bundled yet")
    pipe = MultimodalDiTPipeline.from_pretrained("scenes64")
    pipe.set_progress_bar_config(disable=True)
    names = [f"{index:06d}.png" for index in range(6)]
    pictures = [Image.open(EXAMPLES / "rgb" / name) for name in names]
    out = pipe(pictures, seed=0)
    found: dict[str, list[float]] = {}
    for index, name in enumerate(names):
        fov = sample_layout(0, "test", index, False, 1).camera.fov
        metres = np.asarray(Image.open(EXAMPLES / "depth" / name)) * 0.00025
        truth = (metres[..., None] * rays(64, 64, focal_of(fov))).reshape(-1, 3)
        scale, shift = fit_scale_and_shift(out.depth[index], metres)
        given = {"depth_range": (shift, shift + scale), "focal": focal_of(fov)}
        rgb, depth, normal = np.asarray(pictures[index]), out.depth[index], out.normal[index]
        for what, settings in (
            ("refined", {}),
            ("unrefined", {"refine": False}),
            ("camera estimated", {"focal": None}),
            ("15 degrees too wide", {"focal": focal_of(fov + 15)}),
        ):
            mesh = make_mesh(rgb, depth, normal, "depth", **(given | settings))
            found.setdefault(what, []).append(chamfer_distance(mesh.points()[0], truth))
            if what in ("refined", "unrefined"):
                solid = mesh.trimesh()
                cosine = (solid.face_normals * _nearest_normals(name, truth, solid.triangles_center)).sum(axis=1)
                found.setdefault(f"{what}, normals", []).append(float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean()))
    mean = {what: float(np.mean(values)) for what, values in found.items()}
    print(mean)
    assert mean["refined"] < 0.08
    assert mean["refined"] < mean["unrefined"]
    assert mean["refined, normals"] < 0.75 * mean["unrefined, normals"]
    assert mean["15 degrees too wide"] > 2 * mean["refined"]
    assert mean["camera estimated"] < mean["15 degrees too wide"]


def _nearest_normals(name, truth, centres):
    from scipy.spatial import cKDTree

    normals = np.asarray(Image.open(EXAMPLES / "normal" / name)) / 127.5 - 1
    normals = normals.reshape(-1, 3) / np.linalg.norm(normals.reshape(-1, 3), axis=1, keepdims=True)
    return normals[cKDTree(truth).query(centres)[1]]


def test_bad_input(make_scene):
    scene = make_scene(40)
    with pytest.raises(UserError, match="depth is 32 x 64, rgb 64 x 64"):
        make_mesh(RGB, scene.relative["depth"][:32], None, "depth", focal=1.0, depth_range=(1, 2))
    broken = np.where(np.eye(64) > 0, np.nan, scene.relative["depth"])
    with pytest.raises(UserError, match="depth holds NaN or infinity"):
        make_mesh(RGB, broken, None, "depth", focal=1.0, depth_range=(1, 2))
    noise = np.random.default_rng(0).random((64, 64))
    torn = make_mesh(RGB, noise, None, "depth", focal=1.0, depth_range=(0.001, 1e3))
    with pytest.raises(UserError, match="no two pixels hang together"):
        torn.glb()
