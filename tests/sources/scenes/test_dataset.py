"""Rendered scenes against closed forms, against themselves on more workers, and against interruption."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.errors import UserError
from mmdit.sources.processes import map_in_processes
from mmdit.sources.scenes import dataset as dataset_module
from mmdit.sources.scenes.camera import silhouette
from mmdit.sources.scenes.dataset import (
    DEPTH_SCALE,
    MODALITIES,
    SEGMENTATION_CLASSES,
    SceneSample,
    render_dataset,
    render_scene,
)
from mmdit.sources.scenes.layout import CATEGORY_NAMES, Layout, category_of, sample_layout
from mmdit.sources.scenes.render import render_layout
from mmdit.sources.scenes.shapes import CATEGORIES, category_mesh
from mmdit.storage.lock import FolderLock

NUM_SCENES = 10  # one block: every category once
FLOOR, WALL = 0, 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes written by this process alone."""
    path = tmp_path_factory.mktemp("scenes") / "data"
    render_dataset(path, num_samples=NUM_SCENES, seed=3, num_workers=0)
    return path


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Layout, SceneSample]]:
    """The same ten scenes in memory, with their layouts."""
    return [(sample_layout(3, "train", i), render_scene(3, "train", i)) for i in range(NUM_SCENES)]


def files_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def rays(layout: Layout, size: int) -> np.ndarray:
    """World directions (H, W, 3) through the pixel centres, of depth 1 along the optical axis."""
    half = math.tan(math.radians(layout.camera.fov) / 2)
    grid = ((np.arange(size) + 0.5) / size * 2 - 1) * half
    x, y = np.meshgrid(grid, -grid)
    return np.stack([x, y, -np.ones_like(x)], axis=-1) @ layout.camera.world_to_camera


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between unit vectors (..., 3)."""
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=-1), -1, 1)))


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def test_floor_and_wall_are_the_planes_of_the_layout(scenes):
    for layout, sample in scenes:
        directions, eye = rays(layout, 64), np.asarray(layout.camera.eye)
        to_camera = layout.camera.world_to_camera
        floor, wall = sample.segmentation == FLOOR, sample.segmentation == WALL
        assert floor.any()
        assert wall.any()
        wall_normal = np.asarray(layout.wall_normal)
        wall_depth = -(layout.wall_distance + eye @ wall_normal) / (directions @ wall_normal)
        np.testing.assert_allclose(sample.depth[floor], (-eye[2] / directions[..., 2])[floor], atol=2e-4)
        np.testing.assert_allclose(sample.depth[wall], wall_depth[wall], atol=2e-4)
        up = np.broadcast_to(to_camera @ [0, 0, 1], (floor.sum(), 3))
        np.testing.assert_allclose(sample.normal[floor], up, atol=1e-5)
        np.testing.assert_allclose(
            sample.normal[wall], np.broadcast_to(to_camera @ wall_normal, (wall.sum(), 3)), atol=1e-5
        )


def test_sphere_has_the_depth_and_normals_of_a_sphere(scenes):
    layout, sample = next(pair for pair in scenes if pair[1].category == "sphere")
    radius = 0.5 * layout.objects[0].scale[0]
    centre = np.array([*layout.objects[0].position, radius])
    mask = sample.segmentation == 2 + CATEGORY_NAMES.index("sphere")
    points = np.asarray(layout.camera.eye) + rays(layout, 64) * sample.depth[..., None]
    outwards = points - centre
    # The mesh has 5120 faces: a chord of an edge stays within 0.2% of the radius.
    np.testing.assert_allclose(np.linalg.norm(outwards, axis=-1)[mask], radius, rtol=2e-3)
    outwards = outwards / np.linalg.norm(outwards, axis=-1, keepdims=True)
    error = angles(outwards @ layout.camera.world_to_camera.T, sample.normal)
    assert error[mask].max() < 0.1
    # Seen from outside: every normal turns against its ray.
    towards = rays(layout, 64) @ layout.camera.world_to_camera.T
    assert ((sample.normal * towards).sum(axis=-1)[mask] < 0).all()


def test_normals_agree_with_the_slope_of_the_depth(scenes):
    for layout, sample in scenes:
        points = rays(layout, 64) @ layout.camera.world_to_camera.T * sample.depth[..., None]
        along_x = points[1:-1, 2:] - points[1:-1, :-2]
        along_y = points[:-2, 1:-1] - points[2:, 1:-1]  # upwards
        slope = np.cross(along_x, along_y)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        ids = sample.segmentation
        inner = np.ones((62, 62), bool)
        for dy in range(3):
            for dx in range(3):
                inner &= ids[dy : dy + 62, dx : dx + 62] == ids[1:-1, 1:-1]
        main = inner & (ids[1:-1, 1:-1] == 2 + CATEGORY_NAMES.index(sample.category))
        error = angles(slope, sample.normal[1:-1, 1:-1])
        assert main.sum() > 50, sample.category
        assert np.median(error[main]) < 2.0, sample.category
        assert np.median(error[inner & (ids[1:-1, 1:-1] < 2)]) < 0.1


def test_normals_are_unit_and_point_out_of_the_solids():
    for name in CATEGORIES:
        mesh = category_mesh(name)
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-9)
        a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
        face_normals = np.cross(b - a, c - a)
        assert ((face_normals * mesh.normals[mesh.faces[:, 0]]).sum(axis=1) > 0).all(), name
        # Divergence theorem: the signed volume is positive when faces turn outwards.
        assert (a * face_normals).sum() / 6 > 0.05, name


@pytest.mark.parametrize("index", range(0, 40, 3))
def test_objects_stand_on_the_floor_in_front_of_the_wall_and_in_view(index):
    layout = sample_layout(1, "val", index)
    for placed in layout.objects:
        vertices = placed.mesh().vertices
        assert abs(vertices[:, 2].min()) < 1e-9
        assert (vertices @ np.asarray(layout.wall_normal) + layout.wall_distance).min() > 0
    plane, depth = layout.camera.project(layout.objects[0].mesh().vertices)
    assert np.abs(plane).max() < 1
    assert depth.min() > 0.3
    assert 0.08 < silhouette(layout.objects[0].mesh(), layout.camera).mean() < 0.38


def test_distractors_are_of_another_category_and_occlusion_occurs():
    layouts = [sample_layout(0, "train", index) for index in range(80)]
    pairs = [layout for layout in layouts if len(layout.objects) == 2]
    assert {len(layout.objects) for layout in layouts} == {1, 2}
    assert 0.4 < len(pairs) / len(layouts) < 0.8
    hidden = []
    for layout in pairs:
        main, other = layout.objects
        assert main.category != other.category
        main_mask, other_mask = (silhouette(placed.mesh(16), layout.camera) for placed in layout.objects)
        overlap = (main_mask & other_mask).sum()
        assert other_mask.sum() < main_mask.sum()
        hidden.append(overlap > 0.04 * other_mask.sum())
    assert np.mean(hidden) > 0.5


def test_floor_and_wall_of_one_material_stay_two_surfaces():
    layout = sample_layout(0, "train", 0)
    *_, surface = render_layout(layout, 64)
    *_, alike = render_layout(replace(layout, wall=layout.floor), 64)
    np.testing.assert_array_equal(alike, surface)


def test_rendered_ids_show_the_silhouettes_and_what_hides_them():
    layout = next(
        layout
        for layout in (sample_layout(0, "train", index) for index in range(50))
        if len(layout.objects) == 2
        and (np.logical_and(*(silhouette(placed.mesh(16), layout.camera) for placed in layout.objects))).sum() > 20
    )
    *_, surface = render_layout(layout, 64)
    main, other = (silhouette(placed.mesh(), layout.camera) for placed in layout.objects)
    assert set(np.unique(surface)) <= {0, 1, 2, 3}
    # Drawn polygons are rounded to pixels: a rendered border may lie one pixel outside.
    assert not ((surface == 2) & ~grown(main)).any()
    assert not ((surface == 3) & ~grown(other)).any()
    both = main & other
    assert both.sum() > 20
    assert (surface[both] >= 2).mean() > 0.7
    assert (surface == 2).sum() >= 0.6 * main.sum()


def test_rgb_is_free_of_visible_noise(scenes):
    for layout, sample in scenes[:2]:
        converged = render_layout(layout, 64, supersampling=12)[0].astype(float)
        mean_square = ((sample.rgb - converged) ** 2).mean()
        assert 10 * math.log10(255**2 / mean_square) > 40


def test_a_scene_is_the_same_at_another_size(scenes):
    sample = scenes[0][1]
    larger = render_scene(3, "train", 0, size=128)
    assert larger.rgb.shape == (128, 128, 3)
    # Area averages agree; depth of smooth regions lies between that of the four pixels.
    small = larger.rgb.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - sample.rgb).mean() < 1.5
    assert (larger.segmentation[::2, ::2] == sample.segmentation).mean() > 0.97


def test_categories_are_balanced_and_splits_differ():
    drawn = [category_of(0, "train", index) for index in range(200)]
    assert {name: drawn.count(name) for name in CATEGORY_NAMES} == dict.fromkeys(CATEGORY_NAMES, 20)
    assert len(CATEGORY_NAMES) >= 10
    assert drawn[:10] != drawn[10:20]
    assert sample_layout(0, "train", 0).camera != sample_layout(0, "val", 0).camera
    assert sample_layout(0, "train", 0) == sample_layout(0, "train", 0)


def test_variety_adds_textures_gloss_and_distractors():
    layouts = [sample_layout(0, "train", index, variety=True) for index in range(20)]
    objects = [placed for layout in layouts for placed in layout.objects]
    assert max(len(layout.objects) for layout in layouts) > 2
    assert len({placed.material.texture for placed in objects}) > 2
    assert any(placed.material.gloss > 0 for placed in objects)
    textured = next(layout for layout in layouts if layout.floor.texture == "checker")
    plain = replace(textured, floor=replace(textured.floor, texture="plain"))
    rgb, *geometry = render_layout(textured, 64)
    plain_rgb, *plain_geometry = render_layout(plain, 64)
    # A texture is in RGB alone, and on its own surface alone.
    for changed, original in zip(geometry, plain_geometry, strict=True):
        np.testing.assert_array_equal(changed, original)
    inner_wall = geometry[2] == WALL
    inner_wall[:, 1:] &= inner_wall[:, :-1]
    inner_wall[:-1] &= geometry[2][1:] == WALL
    difference = np.abs(rgb.astype(int) - plain_rgb).max(axis=-1)
    assert difference[geometry[2] == FLOOR].max() > 10
    assert np.median(difference[inner_wall]) == 0


def test_colours_of_the_labels_are_far_apart():
    colors = np.array([entry["color"] for entry in SEGMENTATION_CLASSES], dtype=float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e9 * np.eye(len(colors))
    assert distances.min() > 0.7 * 255
    assert [entry["name"] for entry in SEGMENTATION_CLASSES] == ["floor", "wall", *CATEGORY_NAMES]
    # A blend of floor and wall is nearer to both than to any object.
    middle = np.linalg.norm(colors - colors[:2].mean(axis=0), axis=1)
    assert middle[:2].max() < middle[2:].min()


def test_files_hold_what_was_rendered(dataset, scenes):
    rows = [json.loads(line) for line in (dataset / "train" / "manifest.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"{i:06d}" for i in range(NUM_SCENES)]
    for row, (_, sample) in zip(rows, scenes, strict=True):
        read = {name: np.asarray(Image.open(dataset / "train" / row[name])) for name in MODALITIES}
        assert row["category"] == sample.category
        np.testing.assert_array_equal(read["rgb"], sample.rgb)
        np.testing.assert_array_equal(read["segmentation"], sample.segmentation)
        assert read["depth"].dtype == np.uint16
        np.testing.assert_allclose(read["depth"] * DEPTH_SCALE, sample.depth, atol=DEPTH_SCALE / 2 + 1e-6)
        np.testing.assert_allclose(read["normal"] / 255 * 2 - 1, sample.normal, atol=1 / 255 + 1e-6)
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["depth_scale"] == DEPTH_SCALE
    assert description["provenance"]["seed"] == 3
    report = check_dataset(dataset)
    assert report.problems == ()
    assert report.num_samples == {"train": NUM_SCENES}


def test_resumes_where_files_are_missing_and_keeps_the_rest(dataset, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    (copy / "train" / "depth" / "000004.png").unlink()
    (copy / "train" / "rgb" / "000007.png").unlink()
    (copy / "train" / "normal" / "000005.png").write_bytes(b"")
    cut = copy / "train" / "segmentation" / "000006.png"
    cut.write_bytes(cut.read_bytes()[:-1])
    (copy / "train" / "manifest.jsonl").unlink()
    kept = copy / "train" / "rgb" / "000001.png"
    changed_at = kept.stat().st_mtime_ns
    report = render_dataset(copy, num_samples=NUM_SCENES, seed=3, num_workers=0)
    assert (report.num_rendered, report.num_skipped) == (4, NUM_SCENES - 4)
    assert files_of(copy) == files_of(dataset)
    assert kept.stat().st_mtime_ns == changed_at
    assert render_dataset(copy, num_samples=4, seed=3).num_rendered == 0
    assert len((copy / "train" / "manifest.jsonl").read_text().splitlines()) == NUM_SCENES


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists child processes through /proc")
def test_a_killed_run_leaves_whole_files_and_no_workers_and_can_go_on(dataset, tmp_path):
    """And what its two workers made is what one process makes; assets/test_dataset.py has workers that come to their end."""
    copy = tmp_path / "data"
    script = tmp_path / "render.py"
    script.write_text(
        "from pathlib import Path\nfrom mmdit.sources.scenes import dataset as scenes\nscenes.MANIFEST_EVERY = 2\n"
        f"if __name__ == '__main__':\n    scenes.render_dataset(Path({str(copy)!r}), 500, seed=3, num_workers=2)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 400
    manifest = copy / "train" / "manifest.jsonl"  # it waits for the first scene, which one worker may be slow with
    while not manifest.exists() or len(list(copy.glob("train/segmentation/0*.png"))) < 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    while any(Path(f"/proc/{pid}/exe").exists() for pid in children):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)

    # What the manifest lists by then is complete, so training can start on it.
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert rows
    assert all((copy / "train" / row[modality]).exists() for row in rows for modality in MODALITIES)
    reference, of_workers = files_of(dataset), files_of(copy)
    pictures = [name for name in reference if name.endswith(".png") and name in of_workers]
    assert len(pictures) >= 5 * len(MODALITIES)
    assert all(of_workers[name] == reference[name] for name in pictures)
    report = render_dataset(copy, num_samples=NUM_SCENES, seed=3, num_workers=0)
    assert report.num_skipped > 0
    finished = files_of(copy)
    for listed in ("train/manifest.jsonl", "train/prompts.jsonl"):  # may list more: the killed run was to render 500
        assert finished.pop(listed).startswith(reference.pop(listed))
    assert {name: finished[name] for name in reference} == reference


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"size": 72}, "size was 64, now 72"),
        ({"variety": True}, "variety was False, now True"),
    ],
)
def test_refuses_to_mix_settings_in_a_folder(dataset, change, message):
    with pytest.raises(UserError, match=message):
        render_dataset(dataset, **({"num_samples": NUM_SCENES, "seed": 3} | change))


def test_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "dataset.json").write_text('{"modalities": ["rgb"]}')
    with pytest.raises(UserError, match="says nothing of its provenance"):
        render_dataset(tmp_path, num_samples=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 32}, "size 32: must be at least 64"),
        ({"size": 100}, "divisible by 8"),
        ({"num_samples": 0}, "num_samples 0"),
        ({"num_samples": 10**9}, "num_samples 1000000000: must be at least 1 and at most 100000000"),
        ({"size": 10**6}, "at most 4096"),
        ({"num_workers": 10**9}, "num_workers 1000000000"),
        ({"seed": -1}, "seed -1"),
        ({"split": "../elsewhere"}, "split '../elsewhere'"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"max_distractors": -2}, "max_distractors -2"),
    ],
)
def test_refuses_values_out_of_range(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        render_dataset(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()


def test_a_second_rendering_into_the_folder_is_refused(dataset):
    before = files_of(dataset)
    with (
        FolderLock(dataset, "mmdit data render"),
        pytest.raises(UserError, match=r"'mmdit data render' \(process \d+ on .*\) is writing here"),
    ):
        render_dataset(dataset, num_samples=NUM_SCENES + 1, seed=3, num_workers=0)
    assert files_of(dataset) == before


def test_very_many_scenes_begin_at_once(tmp_path, monkeypatch):
    """10^8 scenes: the first is on its way before anything is listed, in workers and without."""
    taken = []

    def items():
        for number in range(10**8):
            taken.append(number)
            yield number

    results = map_in_processes(abs, items(), 0)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) == 3
    results = map_in_processes(abs, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) < 100
    results.close()


def test_the_manifest_is_written_ever_more_rarely_and_never_shrinks(dataset, tmp_path, monkeypatch):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    (copy / "train/rgb/000000.png").unlink()
    counts = []
    write = dataset_module._write_manifest
    monkeypatch.setattr(dataset_module, "MANIFEST_EVERY", 2)
    monkeypatch.setattr(
        dataset_module,
        "_write_manifest",
        lambda w, scenes, count: (counts.append(count), write(w, scenes, count)),
    )
    render_dataset(copy, num_samples=NUM_SCENES + 5, seed=3, num_workers=0)
    assert counts == [NUM_SCENES + 2, NUM_SCENES + 4, NUM_SCENES + 5]
