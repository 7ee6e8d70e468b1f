"""Pictures of meshes against rays that are cast at their triangles one by one, and against closed forms."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from mmdit.colours import decode_srgb
from mmdit.errors import UserError
from mmdit.sources.scenes.assets.asset import PlacedAsset, build_mesh, corner_normals, describe
from mmdit.sources.scenes.assets.layout import sample_asset_layout
from mmdit.sources.scenes.assets.reading import RawMesh, Units
from mmdit.sources.scenes.camera import Camera, silhouette
from mmdit.sources.scenes.environment import read_environment
from mmdit.sources.scenes.layout import Layout
from mmdit.sources.scenes.material import Material
from mmdit.sources.scenes.render import render_layout
from mmdit.sources.scenes.renderer import load_mitsuba, read_radiance

SIZE = 64


def rays(camera: Camera, size: int = SIZE) -> np.ndarray:
    """World directions (H, W, 3) through the pixel centres, of depth 1 along the optical axis."""
    grid = ((np.arange(size) + 0.5) / size * 2 - 1) * math.tan(math.radians(camera.fov) / 2)
    x, y = np.meshgrid(grid, -grid)
    return np.stack([x, y, -np.ones_like(x)], axis=-1) @ camera.world_to_camera


def cast(camera: Camera, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the first triangle (F, 3, 3) behind each pixel, inf without one, and its number (Moeller and Trumbore, 1997)."""
    directions, eye = rays(camera).reshape(-1, 1, 3), np.asarray(camera.eye)
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    across = np.cross(directions, second)
    determinant = (across * first).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = eye - triangles[:, 0]
        u = (across * offset).sum(-1) / determinant
        turned = np.cross(offset, first)
        v = (directions * turned).sum(-1) / determinant
        depth = (second * turned).sum(-1) / determinant
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0)
    depth = np.where(hit, depth, np.inf)  # (H W, F)
    return depth.min(axis=1).reshape(SIZE, SIZE), depth.argmin(axis=1).reshape(SIZE, SIZE)


def scene_of(root: Path, name: str, yaw: float = 0.0, **changes) -> Layout:
    """A mesh of a file in the middle of a plain scene, seen from its front, a little from above."""
    asset, _ = describe(root, name, "thing", Units())
    placed = PlacedAsset("thing", (1.0, 1.0, 1.0), 0.0, yaw, (0.0, 0.0), Material(asset.albedo), asset)
    layout = sample_asset_layout(0, "train", 0, [asset])
    distance, elevation = 3.2 * asset.size, 20.0
    height = asset.extents[2] / 2 + distance * math.sin(math.radians(elevation))
    camera = Camera((0.0, -distance * math.cos(math.radians(elevation)), height), elevation, 36.0)
    return replace(layout, **{"objects": (placed,), "camera": camera, "wall_normal": (0.0, -1.0, 0.0), **changes})


def bowl() -> trimesh.Trimesh:
    """An open shell whose faces turn to either side at random."""
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=0.4)
    faces = sphere.faces[sphere.triangles_center[:, 1] < 0.1]
    flipped = np.random.default_rng(0).random(len(faces)) < 0.5
    faces[flipped] = faces[flipped][:, ::-1]
    return trimesh.Trimesh(sphere.vertices, faces, process=False)


def test_depth_outline_and_normals_are_those_of_cast_rays(tmp_path):
    bowl().export(tmp_path / "bowl.obj")
    layout = scene_of(tmp_path, "bowl.obj", yaw=40)
    mesh = layout.objects[0].mesh()
    assert mesh.vertices[:, 2].min() == pytest.approx(0)
    triangles = mesh.vertices[mesh.faces]
    expected, face = cast(layout.camera, triangles)
    _, depth, normal, surface = render_layout(layout, SIZE)
    is_thing = np.isfinite(expected)
    assert 400 < is_thing.sum() < 3500
    # A ray that meets an edge exactly may fall to either side.
    assert ((surface == 2) != is_thing).sum() <= 2
    both = is_thing & (surface == 2)
    assert np.abs(depth - expected)[both].max() < 1e-4
    # Every normal turns to the viewer, inside of the bowl and outside, and is near its face's, which bends up to 20 degrees.
    towards = rays(layout.camera) @ layout.camera.world_to_camera.T
    assert (normal * towards).sum(axis=-1)[both].max() < 0
    flat = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    flat = (flat / np.linalg.norm(flat, axis=1, keepdims=True))[face] @ layout.camera.world_to_camera.T
    flat *= -np.sign((flat * towards).sum(axis=-1, keepdims=True))
    cosine = (flat * normal).sum(axis=-1)[both]
    assert np.degrees(np.arccos(np.clip(np.median(cosine), -1, 1))) < 8
    assert cosine.min() > math.cos(math.radians(30))
    # The smooth ones are the sphere's.
    points = np.asarray(layout.camera.eye) + rays(layout.camera) * depth[..., None]
    centre = mesh.vertices.mean(axis=0) * (1, 1, 0)
    centre[2] = 0.4  # the lowest point of a sphere of that radius is on the floor
    radial = (points - centre) / np.linalg.norm(points - centre, axis=-1, keepdims=True)
    cosine = np.abs((radial @ layout.camera.world_to_camera.T * normal).sum(axis=-1))[both]
    assert np.median(cosine) > math.cos(math.radians(2.5))
    # Light reaches both sides: no part of the thing is black.
    assert (silhouette(layout.objects[0].mesh(16), layout.camera) & both).sum() > 0.97 * both.sum()


def test_normals_are_smooth_over_small_bends_and_sharp_at_edges_whichever_way_faces_turn():
    rng = np.random.default_rng(1)
    for shape in (trimesh.creation.icosphere(subdivisions=3), trimesh.creation.box()):
        faces = shape.faces.copy()
        flipped = rng.random(len(faces)) < 0.5
        faces[flipped] = faces[flipped][:, ::-1]
        normals = corner_normals(shape.vertices[faces], faces)
        wanted = shape.vertices[faces].reshape(-1, 3) if len(faces) > 12 else np.repeat(shape.face_normals, 3, axis=0)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-9)
        assert np.abs((normals * wanted).sum(axis=1)).min() > 0.999


def test_a_fan_of_very_many_faces_has_normals_soon():
    angles = np.linspace(0, 2 * np.pi, 5_001)
    rim = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
    triangles = np.stack([np.zeros((5_000, 3)), rim[:-1], rim[1:]], axis=1)
    mesh = build_mesh(RawMesh(triangles, (), "", {}, ()))
    assert np.abs(mesh.mesh.normals[:, 2]).min() > 0.999
    assert len(mesh.coarse.vertices) == 5_001


def test_textures_and_colours_of_corners_are_where_they_belong(tmp_path):
    texels = np.array([[[220, 30, 30], [30, 220, 30]], [[30, 30, 220], [220, 220, 30]]], np.uint8)
    Image.fromarray(texels).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "four.png")
    (tmp_path / "it.mtl").write_text("newmtl one\nmap_Kd four.png\n")
    corners = "v -.5 0 0\nv .5 0 0\nv .5 1 0\nv -.5 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    (tmp_path / "card.obj").write_text(f"mtllib it.mtl\n{corners}usemtl one\nf 1/1 2/2 3/3 4/4\n")
    painted = trimesh.Trimesh([(-0.5, 0, 0), (0.5, 0, 0), (0.5, 0, 1), (-0.5, 0, 1)], [(0, 1, 2), (0, 2, 3)])
    painted.visual.vertex_colors = np.array([[220, 30, 30, 255]] * 2 + [[30, 30, 220, 255]] * 2, np.uint8)
    painted.export(tmp_path / "painted.ply")
    for name, points, wanted in (
        ("card.obj", [(-0.25, 0.75), (0.25, 0.75), (-0.25, 0.25), (0.25, 0.25)], texels.reshape(-1, 3)),
        ("painted.ply", [(0, 0.97), (0, 0.03)], np.array([[30, 30, 220], [220, 30, 30]])),
    ):
        for sun in ((0.0, -0.8, 0.6), (0.0, 0.8, 0.6)):  # either side of the card is lit by it
            layout = scene_of(tmp_path, name, sun_direction=sun)
            rgb = decode_srgb(render_layout(layout, SIZE)[0] / 255.0)
            plane, _ = layout.camera.project(np.array([(x, 0, z) for x, z in points]))
            columns, rows = np.floor((plane * (1, -1) + 1) * SIZE / 2).astype(int).T
            seen, albedo = rgb[rows, columns], decode_srgb(wanted / 255.0)
            # One light on a flat thing: all of it is as bright as its albedo, times one number.
            ratio = (seen * albedo).sum() / (albedo * albedo).sum()
            assert ratio > 0.3
            np.testing.assert_allclose(seen, ratio * albedo, atol=0.04 * ratio)


def test_things_keep_their_real_sizes(tmp_path):
    for name, side in (("crate", 0.6), ("cup", 0.2)):
        trimesh.creation.cylinder(radius=side / 2, height=side).export(tmp_path / f"{name}.ply")
    assets = [describe(tmp_path, f"{name}.ply", name, Units())[0] for name in ("crate", "cup")]
    layouts = [sample_asset_layout(0, "train", index, assets) for index in range(12)]
    layout = next(each for each in layouts if len(each.objects) == 2)
    _, depth, _, surface = render_layout(layout, 256)
    points = np.asarray(layout.camera.eye) + rays(layout.camera, 256) * depth[..., None]
    for number, placed in enumerate(layout.objects):
        side = {"crate": 0.6, "cup": 0.2}[placed.category]
        seen = points[surface == 2 + number]
        assert seen[:, 2].max() == pytest.approx(side, rel=0.02)
        distance = np.linalg.norm(seen[:, :2] - np.asarray(placed.position), axis=1)
        assert distance.max() == pytest.approx(side / 2, rel=0.02)
    # No scene has another that is so small or large that one of the two could not be recognised.
    trimesh.creation.box(extents=(9, 9, 9)).export(tmp_path / "house.ply")
    house = describe(tmp_path, "house.ply", "house", Units())[0]
    alone = [sample_asset_layout(0, "train", index, [*assets, house]) for index in range(9)]
    assert all(len(each.objects) == 1 for each in alone if each.category == "house")
    for each in [*layouts, *alone]:
        unit = each.objects[0].size
        assert each.camera.eye[2] / unit < 6
        # Depth reaches no farther than what the depth of a dataset holds.
        flat = rays(each.camera)
        wall = -(each.wall_distance + np.dot(each.camera.eye, each.wall_normal)) / (flat @ np.asarray(each.wall_normal))
        floor = -each.camera.eye[2] / flat[..., 2]
        nearest = np.minimum(*(np.where(plane > 0, plane, np.inf) for plane in (wall, floor)))
        assert nearest.max() < 20 * unit


def test_an_environment_lights_as_brightly_whatever_its_units_and_the_same_on_any_threads(tmp_path):
    trimesh.creation.box(extents=(1, 1, 1)).export(tmp_path / "box.ply")
    mi = load_mitsuba()
    drjit = importlib.import_module("drjit")
    drjit.set_thread_count(2)  # Mitsuba writes EXR in another thread, also where there is one core
    sky = np.full((8, 16, 3), 0.02, np.float32)
    sky[1:3, 3:5] = 5.0
    pictures = []
    for name, factor in (("dim.exr", 0.01), ("bright.hdr", 100.0)):
        mi.Bitmap(sky * factor).write(str(tmp_path / name))
        environment = read_environment(tmp_path / name)
        layout = scene_of(tmp_path, "box.ply", environment=environment, floor=Material((0.8, 0.8, 0.8)))
        pictures.append(render_layout(layout, 32)[0].astype(int))
    drjit.set_thread_count(1)
    try:
        read_radiance(str(tmp_path / "dim.exr"), 128)
        with pytest.raises(ValueError, match="more than 127 pixels"):
            read_radiance(str(tmp_path / "dim.exr"), 127)
        np.testing.assert_array_equal(render_layout(layout, 32)[0], pictures[-1])
    finally:
        drjit.set_thread_count(2)
    assert np.abs(pictures[0] - pictures[1]).mean() < 3
    # Exposed for the light before the wall: the bright spot is behind it after one of the turns, before it after the other.
    floors = []
    for turn in (45, 225):
        bare = replace(layout, environment=replace(layout.environment, turn=turn))
        rgb, _, _, surface = render_layout(bare, 32)
        floors.append(np.median(decode_srgb(rgb[surface == 0] / 255.0)))
    assert 0.6 < min(floors) < max(floors) < 0.8  # 0.72, less what the box keeps out
    for name, content, message in (
        ("it.png", b"", "high dynamic range"),
        ("gone.exr", None, "no such file"),
        ("bad.hdr", b"x", "can't be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_environment(tmp_path / name)
    mi.Bitmap(sky * 0).write(str(tmp_path / "night.exr"))
    with pytest.raises(UserError, match="no light"):
        read_environment(tmp_path / "night.exr")
