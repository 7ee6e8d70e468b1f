"""Mesh files of every kind: what their numbers and colours mean, and what of them is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from mmdit.sources.scenes.assets import declared
from mmdit.sources.scenes.assets.asset import describe, name_of, sample_colours
from mmdit.sources.scenes.assets.declared import BadMesh
from mmdit.sources.scenes.assets.files import find_licence, list_assets
from mmdit.sources.scenes.assets.reading import Units, read_mesh
from mmdit.sources.scenes.assets.references import References

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
TEXTURED = f"mtllib it.mtl\n{TRIANGLE}vt 0 0\nvt 1 0\nvt 0 1\nusemtl one\nf 1/1 2/2 3/3\n"


def tree_of(content: bytes) -> tuple[dict, bytes]:
    """JSON and the rest of a GLB."""
    length = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + length]), content[20 + length :]


def glb_of(tree: dict, rest: bytes) -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def extents(root: Path, path: str, *units: str) -> list[float]:
    raw = read_mesh(root, path, Units(*units))
    return np.round(np.ptp(raw.triangles.reshape(-1, 3), axis=0), 6).tolist()


def test_numbers_become_metres_with_z_up(tmp_path):
    for suffix in ("obj", "glb", "gltf", "ply", "stl"):
        (tmp_path / suffix).mkdir()
        trimesh.creation.box(extents=(1, 2, 3)).export(tmp_path / suffix / f"box.{suffix}")
    assert extents(tmp_path, "obj/box.obj") == [1, 3, 2]
    assert extents(tmp_path, "ply/box.ply") == [1, 2, 3]
    assert extents(tmp_path, "stl/box.stl", "cm") == [0.01, 0.02, 0.03]
    assert extents(tmp_path, "obj/box.obj", "inch", "z") == [0.0254, 0.0508, 0.0762]
    assert extents(tmp_path, "stl/box.stl", "cm", "y") == [0.01, 0.03, 0.02]
    for name in ("glb/box.glb", "gltf/box.gltf"):  # says it itself
        assert extents(tmp_path, name, "mm", "z") == [1, 3, 2]
    # y up, the front to z: up is z here and the front is -y, where the camera is.
    trimesh.Trimesh([(0, 0, 0), (0, 1, 0), (0, 0, 1)], [(0, 1, 2)]).export(tmp_path / "axes.obj")
    corners = read_mesh(tmp_path, "axes.obj", Units()).triangles[0].tolist()
    assert sorted(corners) == sorted([[0, 0, 0], [0, 0, 1], [0, -1, 0]])


def test_every_instance_of_a_gltf_scene_stands_where_its_node_says(tmp_path):
    scene = trimesh.Scene()
    box = trimesh.creation.box(extents=(0.1, 0.1, 0.1))
    scene.add_geometry(box, geom_name="box")
    there = trimesh.transformations.translation_matrix((2, 0, 0)) @ np.diag([3.0, 3.0, 3.0, 1.0])
    scene.graph.update(frame_to="again", matrix=there, geometry="box")
    scene.export(tmp_path / "two.glb")
    raw = read_mesh(tmp_path, "two.glb", Units())
    assert len(raw.triangles) == 24
    boxes = sorted(np.ptp(half.reshape(-1, 3), axis=0).round(5).tolist() for half in np.split(raw.triangles, 2))
    assert boxes == [[0.1] * 3, [0.3] * 3]
    np.testing.assert_allclose(raw.triangles.reshape(-1, 3)[:, 0].max(), 2.15, atol=1e-6)


def test_colours_of_materials_textures_and_corners(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)).save(tmp_path / "two.png")
    (tmp_path / "it.mtl").write_text("newmtl one\nKd 0 0 0\nmap_Kd two.png\n")
    (tmp_path / "textured.obj").write_text(TEXTURED)
    (part,) = read_mesh(tmp_path, "textured.obj", Units()).parts
    assert part.albedo.tolist() == [1, 1, 1]  # black beside a texture is an exporter's slip
    assert part.texture.tolist() == [[[255, 0, 0], [0, 255, 0]]]

    (tmp_path / "it.mtl").write_text("newmtl one\nKd 0.5 0.25 1\n")
    (part,) = read_mesh(tmp_path, "textured.obj", Units()).parts
    np.testing.assert_allclose(part.albedo, [0.214, 0.0509, 1], atol=3e-3)  # sRGB by its formula

    box = trimesh.creation.box()
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[0.5, 0.25, 1.0, 1.0])
    box.visual = trimesh.visual.TextureVisuals(material=material)
    box.export(tmp_path / "factor.glb")
    (part,) = read_mesh(tmp_path, "factor.glb", Units()).parts
    np.testing.assert_allclose(part.albedo, [0.5, 0.25, 1], atol=3e-3)  # linear by glTF's specification

    painted = trimesh.creation.box()
    painted.visual.vertex_colors = np.array([[255, 0, 0, 255]] * 8, np.uint8)
    painted.export(tmp_path / "painted.ply")
    (part,) = read_mesh(tmp_path, "painted.ply", Units()).parts
    assert part.albedo.shape == (36, 3)
    assert np.unique(part.albedo, axis=0).tolist() == [[1, 0, 0]]

    trimesh.creation.box().export(tmp_path / "plain.stl")
    assert read_mesh(tmp_path, "plain.stl", Units()).parts == ()


def test_a_colour_is_named_where_nearly_all_of_the_surface_has_it(tmp_path):
    red, blue, brown = (0.8, 0.02, 0.02), (0.02, 0.02, 0.8), (0.3, 0.12, 0.03)
    assert name_of(np.array([red] * 90 + [blue] * 10)) == "red"
    assert name_of(np.array([red] * 70 + [blue] * 30)) == ""
    assert name_of(np.array([brown] * 100)) == ""
    # By area, not by number of faces: a large red side and many small blue ones.
    large = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (0, 1, 0)], [(0, 1, 2)])
    small = trimesh.creation.icosphere(subdivisions=2, radius=0.03)
    for mesh, colour in ((large, (255, 30, 30, 255)), (small, (30, 30, 255, 255))):
        mesh.visual.face_colors = np.array([colour] * len(mesh.faces), np.uint8)
    trimesh.util.concatenate([large, small]).export(tmp_path / "it.ply")
    asset, raw = describe(tmp_path, "it.ply", "it", Units())
    assert asset.colour == "red"
    share = (sample_colours(raw)[:, 0] > 0.5).mean()
    assert share == pytest.approx(0.5 / (0.5 + 4 * np.pi * 0.03**2), abs=0.02)


def test_names_of_files_and_folders_are_categories_and_licences_lie_beside(tmp_path):
    box = trimesh.creation.box()
    for name in ("office_chair.obj", "lamp/1.stl", "lamp/more/2.PLY", "table.glb", ".hidden/x.stl", "notes.txt.stl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(box.export(file_type=path.suffix[1:].lower()) if path.suffix != ".obj" else b"")
    (tmp_path / "LICENSE.txt").write_text("CC0\n1.0")
    (tmp_path / "lamp/12 - licence.html").write_text("<p>CC-BY</p>")
    found = {asset.path: asset.category for asset in list_assets(tmp_path)}
    assert found == {
        "lamp/1.stl": "lamp",
        "lamp/more/2.PLY": "lamp",
        "notes.txt.stl": "notes.txt",
        "office_chair.obj": "office chair",
        "table.glb": "table",
    }
    assert find_licence(tmp_path, "table.glb")["begins"] == "CC0 1.0"
    assert find_licence(tmp_path, "lamp/more/2.PLY")["file"] == "lamp/12 - licence.html"


def test_only_files_below_the_folder_are_read(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for path in (tmp_path / "secret.png", root / "a/wood.png", root / "beside.png"):
        Image.new("RGB", (2, 2), (10, 200, 30)).save(path)
    (root / "a/link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../../secret.png", str(tmp_path / "secret.png"), "link.png", "C:\\secret.png", "gone.png"):
        references = References(root, root / "a")
        with pytest.raises(FileNotFoundError):
            references.get(name)
        assert ("outside the folder" in references.notes[0]) == (name != "gone.png")
        assert not references.files
    references = References(root, root / "a")
    for name in ("wood.png", "../beside.png", "C:\\Users\\me\\wood.png", "/home/me/wood.png", "w%6Fod.png"):
        assert references.get(name)
    assert sorted(references.files) == ["a/wood.png", "beside.png"]

    (root / "a/it.mtl").write_text("newmtl one\nmap_Kd ../../secret.png\n")
    (root / "a/it.obj").write_text(TEXTURED)
    raw = read_mesh(root, "a/it.obj", Units())
    assert raw.parts[0].texture is None
    assert raw.notes == (f"names '../../secret.png', which is outside the folder {root}: not read",)
    (root / "a/it.mtl").write_text("newmtl one\nmap_Kd http://127.0.0.1:9/x.png\n")
    with pytest.raises(BadMesh, match="nothing is read from a network"):
        read_mesh(root, "a/it.obj", Units())


def test_the_digest_is_of_all_files_of_a_mesh(tmp_path):
    (tmp_path / "it.obj").write_text(TEXTURED)
    (tmp_path / "it.mtl").write_text("newmtl one\nmap_Kd wood.png\n")
    Image.new("RGB", (2, 2), (10, 200, 30)).save(tmp_path / "wood.png")
    before = read_mesh(tmp_path, "it.obj", Units())
    assert sorted(before.files) == ["it.mtl", "it.obj", "wood.png"]
    assert read_mesh(tmp_path, "it.obj", Units()).digest == before.digest
    Image.new("RGB", (2, 2), (11, 200, 30)).save(tmp_path / "wood.png")
    assert read_mesh(tmp_path, "it.obj", Units()).digest != before.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("it.obj", "", "no faces|can't be read"),
        ("it.obj", TRIANGLE, "has no faces"),
        ("it.obj", TRIANGLE + "f 1 2 9\n", "can't be read|not there"),
        ("it.obj", TRIANGLE + "f 1 2 x\n", "can't be read"),
        ("it.obj", TRIANGLE.replace("v 1 0", "v nan 0") + "f 1 2 3\n", "not finite"),
        ("it.obj", TRIANGLE.replace("v 0 1", "v 2 0") + "f 1 2 3\n", "no face with an area"),
        ("it.obj", TRIANGLE.replace("1", "100") + "f 1 2 3\n", "longest side is 100 m.*--assets_unit"),
        ("it.obj", TRIANGLE.replace("1", "1e-4") + "f 1 2 3\n", "longest side is 0.0001 m"),
        ("it.obj", TRIANGLE + "f 1 2 3\n" * 5, "has 5 faces, at most 4"),
        ("it.stl", "solid it\nfacet", "can't be read|no faces"),
        ("it.stl", b"\0" * 80 + b"\xff\xff\xff\x7f", "announces 2147483647 faces"),
        ("it.ply", "ply\nformat ascii 1.0\nelement vertex 99999999\nend_header\n", "announces 99999999 of 'vertex'"),
        ("it.ply", "nothing", "is no PLY"),
        ("it.glb", b"glTF" + b"\0" * 40, "version 0 of GLB"),
        ("it.glb", struct.pack("<4sIIII", b"glTF", 2, 40, 999, 0x4E4F534A) + b"\0" * 20, "is no whole GLB"),
        ("it.gltf", "{", "JSON can't be read"),
        ("it.gltf", '{"asset": {"version": "2.0"}, "accessors": [{"count": 1e12}]}', "no number of things"),
        ("it.gltf", '{"accessors": [{"count": 999999999, "componentType": 5126, "type": "VEC3"}]}', "announces"),
        ("it.gltf", '{"extensionsRequired": ["KHR_draco_mesh_compression"]}', "is compressed"),
        ("it.gltf", '{"nodes": [{"children": [1]}, {"children": [1]}]}', "no tree"),
        ("it.gltf", '{"nodes": [{"children": [1]}, {"children": [0]}], "scenes": [{"nodes": [0]}]}', "no tree"),
        ("it.gltf", '{"buffers": [{"uri": "../x.bin", "byteLength": 4}]}', "outside the folder"),
        ("it.gltf", '{"buffers": [{"uri": "https://x.org/x.bin", "byteLength": 4}]}', "from a network"),
    ],
)
def test_what_can_not_be_used_is_said_in_one_line(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(declared, "MAX_FACES", 4)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadMesh, match=message) as caught:
        read_mesh(tmp_path, name, Units())
    assert "\n" not in str(caught.value)


def test_an_image_that_starts_a_program_is_no_texture(tmp_path):
    (tmp_path / "it.obj").write_text(TEXTURED)
    (tmp_path / "it.mtl").write_text("newmtl one\nmap_Kd it.eps\n")
    (tmp_path / "it.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n")
    with pytest.raises(BadMesh, match="texture of the format EPS"):
        read_mesh(tmp_path, "it.obj", Units())


def test_a_glb_that_is_cut_off_is_refused(tmp_path):
    content = trimesh.creation.icosphere(subdivisions=2).export(file_type="glb")
    for length in (10, 100, len(content) - 50):
        (tmp_path / "it.glb").write_bytes(content[:length])
        with pytest.raises(BadMesh):
            read_mesh(tmp_path, "it.glb", Units())
    tree, rest = tree_of(content)
    (tmp_path / "it.glb").write_bytes(glb_of(tree, rest))
    assert len(read_mesh(tmp_path, "it.glb", Units()).triangles) == 320
    tree["bufferViews"][0]["byteLength"] = 10**6
    (tmp_path / "it.glb").write_bytes(glb_of(tree, rest))
    with pytest.raises(BadMesh, match="can't be read"):
        read_mesh(tmp_path, "it.glb", Units())
