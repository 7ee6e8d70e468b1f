"""A miniature Hypersim: a room of planes seen by a turned camera, in Hypersim's layout and with its conventions."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from mmdit.cli.main import main
from mmdit.data.check import check_dataset
from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import read_dataset_info, read_manifest
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec
from mmdit.sources.hypersim.camera import camera_normals, camera_rays, planar_depth, tone_map
from mmdit.sources.hypersim.dataset import import_hypersim
from mmdit.storage.lock import FolderLock

h5py = pytest.importorskip("h5py")

HEIGHT, WIDTH = 24, 32
FOCAL = WIDTH / 2 / math.tan(math.pi / 6)
# A plane with unit normal N (camera frame) at the distance OFFSET from the centre: N.x = -OFFSET.
NORMAL, OFFSET = np.array([0.3, 0.5, math.sqrt(1 - 0.34)]), 4.0
MATRIX = [[0.6, 0, 0.1], [0, 0.45, -0.05], [0, 0, -1]]  # a lens that is shifted


def _pixel_rays() -> np.ndarray:
    """Rays of a pinhole camera, from pixel coordinates: nothing of the code under test."""
    rays = np.empty((HEIGHT, WIDTH, 3))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            rays[row, column] = ((column + 0.5 - WIDTH / 2) / FOCAL, (HEIGHT / 2 - row - 0.5) / FOCAL, -1)
    return rays


def _rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = array


def _write_scene(root, scene="ai_001_001", frames=(0, 1, 2), rays=None):
    rays = _pixel_rays() if rays is None else rays
    rotations = np.stack([_rotation(i) for i in range(max(frames) + 1)])
    _save(root / scene / "_detail/cam_00/camera_keyframe_orientations.hdf5", rotations)
    depth = -OFFSET / (rays @ NORMAL) * -rays[..., 2]  # of the points t * ray on the plane
    distance = depth * np.linalg.norm(rays, axis=-1) / -rays[..., 2]
    images = root / scene / "images"
    semantic = np.where(np.arange(WIDTH) < 8, -1, 22).astype(np.int16)[None].repeat(HEIGHT, axis=0)
    color = np.random.default_rng(1).uniform(0, 4, (HEIGHT, WIDTH, 3)).astype(np.float16)
    for number in frames:
        world = np.broadcast_to(rotations[number] @ NORMAL, (HEIGHT, WIDTH, 3)).astype(np.float32).copy()
        world[:, ::2] *= -1  # triangles that are seen from behind
        world[0, 0] = np.nan
        holes = distance.astype(np.float32).copy()
        holes[0, 0] = np.nan
        stem = f"frame.{number:04d}"
        _save(images / "scene_cam_00_geometry_hdf5" / f"{stem}.depth_meters.hdf5", holes)
        _save(images / "scene_cam_00_geometry_hdf5" / f"{stem}.normal_world.hdf5", world)
        _save(images / "scene_cam_00_geometry_hdf5" / f"{stem}.semantic.hdf5", semantic)
        _save(images / "scene_cam_00_geometry_hdf5" / f"{stem}.render_entity_id.hdf5", np.ones((HEIGHT, WIDTH), int))
        _save(images / "scene_cam_00_final_hdf5" / f"{stem}.color.hdf5", color)
    return depth, color


def _geometry(root, number, scene="ai_001_001"):
    return root / scene / "images/scene_cam_00_geometry_hdf5" / f"frame.{number:04d}"


def test_import_against_closed_forms(tmp_path):
    depth, color = _write_scene(tmp_path / "hypersim")
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert report.num_samples == {"train": 3}
    assert report.bad == ()
    assert check_dataset(tmp_path / "out").problems == ()
    info = read_dataset_info(tmp_path / "out")
    assert info.licence == "CC-BY-SA-3.0"
    samples = read_manifest(info, "train")
    assert [sample.id for sample in samples] == [f"ai_001_001/cam_00/{i:04d}" for i in range(3)]
    for sample in samples:
        raw = {
            name: build_codec(MODALITIES[name]).read(path, {"depth_scale": info.depth_scale}).values
            for name, path in sample.files.items()
        }
        assert raw["depth"][0, 0] == 0
        valid = np.ones((HEIGHT, WIDTH), bool)
        valid[0, 0] = False
        np.testing.assert_allclose(raw["depth"][valid], depth[valid], atol=0.00051)
        angle = np.degrees(np.arccos(np.clip((raw["normal"] @ NORMAL) / np.linalg.norm(raw["normal"], axis=-1), -1, 1)))
        assert angle[valid].max() < 0.5  # 8 bits; those from behind are turned round
        assert np.linalg.norm(raw["normal"][0, 0]) < 0.01
        assert np.unique(raw["segmentation"][:, :8]).tolist() == [0]
        assert np.unique(raw["segmentation"][:, 8:]).tolist() == [22]
    names = {entry["id"]: entry["name"] for entry in info.segmentation_classes}
    assert (names[0], names[1], names[22], names[40]) == ("unlabelled", "wall", "ceiling", "other prop")
    brightness = color.astype(np.float64) @ [0.3, 0.59, 0.11]
    at_level = raw["rgb"][np.abs(brightness - np.percentile(brightness, 90)) < 0.05] / 255.0
    # A grey of the 90th percentile would be 0.8 in every channel; colours of that brightness are so in linear light.
    np.testing.assert_allclose((at_level**2.2) @ [0.3, 0.59, 0.11], 0.8**2.2, rtol=0.03)
    assert len(at_level) > 3
    assert AlignedFolder(tmp_path / "out")[0]["present"].all()


def test_rays_of_a_scene_with_a_shifted_lens(tmp_path):
    u = (np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1
    v = 1 - (np.arange(HEIGHT) + 0.5) / HEIGHT * 2
    rays = np.empty((HEIGHT, WIDTH, 3))
    rays[..., 0], rays[..., 1], rays[..., 2] = 0.6 * u + 0.1, (0.45 * v - 0.05)[:, None], -1
    np.testing.assert_allclose(camera_rays(HEIGHT, WIDTH, MATRIX), rays, atol=1e-12)
    np.testing.assert_allclose(camera_rays(HEIGHT, WIDTH), _pixel_rays(), atol=1e-12)
    depth, _ = _write_scene(tmp_path / "hypersim", frames=(0,), rays=rays)
    row = {"scene_name": "ai_001_001"} | {f"M_cam_from_uv_{i}{j}": MATRIX[i][j] for i in range(3) for j in range(3)}
    with (tmp_path / "hypersim/metadata_camera_parameters.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    found = (
        build_codec(MODALITIES["depth"])
        .read(tmp_path / "out/train/depth/ai_001_001/cam_00/0000.png", {"depth_scale": 0.001})
        .values
    )
    np.testing.assert_allclose(found[1:], depth[1:], atol=0.00051)
    (tmp_path / "hypersim/metadata_camera_parameters.csv").unlink()
    with pytest.raises(UserError, match="holds frames of another request"):
        import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)


def test_conversions_alone():
    rays = np.array([[[3.0, 0.0, -4.0], [0.0, 0.0, -1.0]]])
    np.testing.assert_allclose(planar_depth(np.array([[10.0, np.nan]]), rays), [[8.0, 0.0]])
    turned = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # the camera's x is the world's y, its y the world's z
    normals = np.array([[[0.0, 0.0, 2.0], [-1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(camera_normals(normals, turned, rays), [[[0, 1, 0], [0, 0, 1]]], atol=1e-7)
    black = tone_map(np.zeros((2, 2, 3)), np.ones((2, 2), bool))
    assert not black.any()
    grey = tone_map(np.full((2, 2, 3), 7.0), np.ones((2, 2), bool))
    assert np.unique(grey).tolist() == [204]  # 0.8


def test_published_split_and_frames_kept_back(tmp_path):
    _write_scene(tmp_path / "hypersim")
    rows = [("0", "True", "val"), ("1", "False", ""), ("2", "True", "train")]
    text = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
    text += "".join(f"ai_001_001,cam_00,{number},{public},,{split}\n" for number, public, split in rows)
    (tmp_path / "hypersim/metadata_images_split_scene_v1.csv").write_text(text)
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert report.num_samples == {"val": 1, "train": 1}
    assert (tmp_path / "out/val/rgb/ai_001_001/cam_00/0000.png").is_file()


def test_bad_frames_are_listed_and_the_others_kept(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0, 1, 2, 3))
    (_geometry(tmp_path / "hypersim", 1).parent / "frame.0001.semantic.hdf5").unlink()
    damaged = _geometry(tmp_path / "hypersim", 2).parent / "frame.0002.depth_meters.hdf5"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert report.num_samples == {"train": 2}
    assert [problem.id[-4:] for problem in report.bad] == ["0001", "0002"]
    assert "no such file" in report.bad[0].reason
    assert "damaged" in report.bad[1].reason
    assert check_dataset(tmp_path / "out").problems == ()
    kept = tmp_path / "out/train/rgb/ai_001_001/cam_00/0000.png"
    stamp = kept.stat().st_mtime_ns
    damaged.write_bytes(whole)
    again = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert again.num_samples == {"train": 3}
    assert len(again.bad) == 1
    assert kept.stat().st_mtime_ns == stamp


def test_command_with_two_processes(tmp_path, capsys):
    _write_scene(tmp_path / "hypersim", frames=(0, 1, 2, 3))
    import_hypersim(tmp_path / "hypersim", tmp_path / "one", num_workers=0)
    arguments = ["data", "hypersim", "--source", str(tmp_path / "hypersim"), "--output", str(tmp_path / "two")]
    assert main([*arguments, "--num_workers", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'two'}: train 4 frames imported\n"
    files = [
        {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    ]
    assert len(files[0]) == 18  # 4 x 4, the manifest, the description
    assert files[0] == files[1]
    (_geometry(tmp_path / "hypersim", 4).parent / "frame.0004.semantic.hdf5").write_bytes(b"alone")
    assert main([*arguments, "--num_workers", "0"]) == 2
    result = capsys.readouterr()
    assert result.out.startswith("ai_001_001/cam_00/0004: ")
    assert "1 problems, listed above" in result.err.splitlines()[-1]


def test_files_of_other_shapes_stop_no_import(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0, 1, 2, 3))
    geometry = _geometry(tmp_path / "hypersim", 1).parent
    _save(geometry / "frame.0001.normal_world.hdf5", np.ones((HEIGHT, WIDTH + 1, 3)))
    _save(geometry / "frame.0002.depth_meters.hdf5", np.ones((HEIGHT, WIDTH, 1)))
    _save(geometry / "frame.0003.render_entity_id.hdf5", np.ones((HEIGHT, WIDTH + 2)))
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert report.num_samples == {"train": 1}
    assert [problem.id[-4:] for problem in report.bad] == ["0001", "0002", "0003"]
    assert "differ in size: {'depth': (24, 32), 'normal': (24, 33)}" in report.bad[0].reason
    assert "has shape (24, 32, 1), not (height, width)" in report.bad[1].reason
    assert "differ in size" in report.bad[2].reason


def test_rows_of_the_orientations_are_those_of_the_table_beside_them(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0, 2))
    detail = tmp_path / "hypersim/ai_001_001/_detail/cam_00"
    rotations = np.stack([_rotation(2), _rotation(0)])
    _save(detail / "camera_keyframe_orientations.hdf5", rotations)
    _save(detail / "camera_keyframe_frame_indices.hdf5", np.array([2, 0]))
    assert import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0).num_samples == {"train": 2}
    for number in (0, 2):
        path = tmp_path / f"out/train/normal/ai_001_001/cam_00/{number:04d}.png"
        assert (
            np.abs(build_codec(MODALITIES["normal"]).read(path, {"depth_scale": 0.001}).values[1:] - NORMAL).max()
            < 0.005
        )
    _save(detail / "camera_keyframe_frame_indices.hdf5", np.array([2, 7]))
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "other", num_workers=0)
    assert [problem.id[-4:] for problem in report.bad] == ["0000"]
    assert "2 orientations, none for this frame" in report.bad[0].reason


def test_preview_where_there_is_no_radiance(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0,))
    images = tmp_path / "hypersim/ai_001_001/images"
    (images / "scene_cam_00_final_hdf5/frame.0000.color.hdf5").unlink()
    (images / "scene_cam_00_final_preview").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), (10, 120, 240)).save(
        images / "scene_cam_00_final_preview/frame.0000.tonemap.jpg", quality=100
    )
    import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    rgb = (
        build_codec(MODALITIES["rgb"])
        .read(tmp_path / "out/train/rgb/ai_001_001/cam_00/0000.png", {"depth_scale": 0.001})
        .values
    )
    assert np.abs(rgb.astype(int) - (10, 120, 240)).max() <= 3


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        import_hypersim(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="no frame in it"):
        import_hypersim(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="--split_csv"):
        import_hypersim(tmp_path, tmp_path / "out", split_csv=tmp_path / "none.csv")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="'scene_name'"):
        import_hypersim(tmp_path, tmp_path / "out", cameras_csv=tmp_path / "odd.csv")
    (tmp_path / "cameras.csv").write_text("scene_name,settings_camera_fov\nai_001_001,1.0\n")
    with pytest.raises(UserError, match="no column 'camera_name'; give Hypersim's metadata_images_split"):
        import_hypersim(tmp_path, tmp_path / "out", split_csv=tmp_path / "cameras.csv")
    (tmp_path / "binary.csv").write_bytes(b"PK\xff\xfe\x80")
    with pytest.raises(UserError, match="is not a table of text"):
        import_hypersim(tmp_path, tmp_path / "out", split_csv=tmp_path / "binary.csv")
    _write_scene(tmp_path / "hypersim", frames=(0,))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset.json").write_text(json.dumps({"modalities": ["rgb"], "provenance": {"generator": "me"}}))
    with pytest.raises(UserError, match="choose another --output"):
        import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)


def _replace(path, make):
    path.unlink()
    with h5py.File(path, "w") as file:
        make(file)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("depth_meters", lambda h: h.create_group("dataset"), "'dataset' is a group"),
        ("depth_meters", lambda h: h.create_dataset("other", data=[1.0]), "damaged, or not Hypersim's"),
        (
            "depth_meters",
            lambda h: h.create_dataset("dataset", (24, 32), h5py.string_dtype()),
            "holds object, not numb",
        ),
        ("depth_meters", lambda h: h.create_dataset("dataset", (24, 32), [("a", "f4")]), "not numbers"),
        ("depth_meters", lambda h: h.create_dataset("dataset", (24, 32), "c8"), "holds complex64, not numbers"),
        (
            "depth_meters",
            lambda h: h.create_dataset("dataset", (10**6, 10**6), "f4", chunks=(99, 99)),
            "over the limit",
        ),
        ("depth_meters", lambda h: h.create_dataset("dataset", data=h5py.Empty("f4")), "is empty, not an array"),
        ("depth_meters", lambda h: h.create_dataset("dataset", data=np.full((24, 32), np.nan)), "no valid pixel"),
        ("semantic", lambda h: h.create_dataset("dataset", data=np.full((24, 32), np.nan)), "not whole numbers"),
        ("normal_world", lambda h: h.create_dataset("dataset", data=np.full((24, 32, 3), np.nan)), "no valid pixel"),
    ],
)
def test_whatever_a_frame_holds_the_others_are_imported(tmp_path, name, make, message):
    _write_scene(tmp_path / "hypersim", frames=(0, 1))
    _replace(_geometry(tmp_path / "hypersim", 1).parent / f"frame.0001.{name}.hdf5", make)
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert report.num_samples == {"train": 1}
    (bad,) = report.bad
    assert bad.id == "ai_001_001/cam_00/0001"
    assert message in bad.reason
    assert check_dataset(tmp_path / "out").problems == ()


def test_colours_and_orientations_that_are_no_numbers(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0, 1))
    images = tmp_path / "hypersim/ai_001_001/images"
    _save(images / "scene_cam_00_final_hdf5/frame.0001.color.hdf5", np.full((HEIGHT, WIDTH, 3), np.nan))
    report = import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert [("all pixels are NaN" in bad.reason, bad.id[-1]) for bad in report.bad] == [(True, "1")]
    detail = tmp_path / "hypersim/ai_001_001/_detail/cam_00"
    for wrong, message in ((np.full((2, 3, 3), np.nan), "not a rotation"), (np.eye(3), r"has shape \(3, 3\)")):
        _save(detail / "camera_keyframe_orientations.hdf5", wrong)
        report = import_hypersim(tmp_path / "hypersim", tmp_path / f"out{wrong.ndim}", num_workers=0)
        assert len(report.bad) == 2
        assert all(re.search(message, bad.reason) for bad in report.bad)


def _external_link(target):
    return lambda h: h.__setitem__("dataset", h5py.ExternalLink(str(target), "dataset"))


def _soft_to_external(target):
    def make(file):
        file["elsewhere"] = h5py.ExternalLink(str(target), "/")
        file["dataset"] = h5py.SoftLink("/elsewhere/dataset")

    return make


def _virtual(target):
    def make(file):
        layout = h5py.VirtualLayout((HEIGHT, WIDTH), "f8")
        layout[:] = h5py.VirtualSource(str(target), "dataset", (HEIGHT, WIDTH))
        file.create_virtual_dataset("dataset", layout)

    return make


def _raw(target):
    def make(file):
        file.create_dataset("dataset", (HEIGHT, WIDTH), "u1", external=[(str(target), 0, HEIGHT * WIDTH)])

    return make


@pytest.mark.parametrize("make", [_external_link, _soft_to_external, _virtual, _raw])
def test_links_out_of_the_source_need_a_word(tmp_path, make):
    source = tmp_path / "hypersim"
    _write_scene(source, frames=(0, 1))
    depth = _geometry(source, 1).parent / "frame.0001.depth_meters.hdf5"
    for place, refused in ((tmp_path / "secret.hdf5", True), (source / "shared.hdf5", False)):
        _save(place, np.full((HEIGHT, WIDTH), 2.0))
        _replace(depth, make(place))
        for allow in (False, True):
            output = tmp_path / f"out-{place.stem}-{allow}"
            report = import_hypersim(source, output, num_workers=0, allow_outside=allow)
            outside = [bad for bad in report.bad if "--allow_outside accepts that" in bad.reason]
            assert bool(outside) == (refused and not allow), report.bad


def test_links_within_the_file_and_chains_of_them(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0,))
    path = _geometry(tmp_path / "hypersim", 0).parent / "frame.0000.depth_meters.hdf5"

    def chain(file):
        file["real/values"] = np.full((HEIGHT, WIDTH), 2.0)
        file["dataset"] = h5py.SoftLink("/real/values")

    _replace(path, chain)
    assert import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0).bad == ()
    _replace(path, lambda file: file.__setitem__("dataset", h5py.SoftLink("/dataset")))
    (bad,) = import_hypersim(tmp_path / "hypersim", tmp_path / "other", num_workers=0).bad
    assert "chain of more than 8 links" in bad.reason


def test_a_second_import_is_refused_and_hidden_folders_are_no_scenes(tmp_path):
    _write_scene(tmp_path / "hypersim", frames=(0,))
    (tmp_path / "hypersim/.trash").symlink_to(tmp_path / "hypersim/ai_001_001")
    with (
        FolderLock(tmp_path / "out", "mmdit data hypersim"),
        pytest.raises(UserError, match="is writing here"),
    ):
        import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0)
    assert import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=0).num_samples == {"train": 1}
    with pytest.raises(UserError, match="num_workers 1000000000"):
        import_hypersim(tmp_path / "hypersim", tmp_path / "out", num_workers=10**9)
