"""Scenes of meshes on disk: the same for any number of workers, of one folder of meshes and one set of settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.errors import UserError
from mmdit.sources.scenes.assets.asset import describe
from mmdit.sources.scenes.assets.catalogue import read_catalogue
from mmdit.sources.scenes.assets.dataset import render_assets
from mmdit.sources.scenes.assets.layout import sample_asset_layout
from mmdit.sources.scenes.assets.reading import Units
from mmdit.sources.scenes.captions import captions
from mmdit.sources.scenes.dataset import MODALITIES, render_dataset
from mmdit.sources.scenes.renderer import load_mitsuba

NUM_SCENES = 6


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red cube, chairs in two variants, and a tube without a colour."""
    root = tmp_path_factory.mktemp("meshes")
    cube = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
    cube.visual.face_colors = np.array([[230, 20, 20, 255]] * 12, np.uint8)
    cube.export(root / "toy_cube.ply")
    (root / "chair").mkdir()
    for number, height in enumerate((0.8, 0.9)):
        seat = trimesh.creation.box(extents=(0.4, 0.4, 0.05))
        back = trimesh.creation.box(extents=(0.4, 0.04, height))
        back.apply_translation((0, 0.2, height / 2))
        trimesh.util.concatenate([seat, back]).export(root / "chair" / f"{number}.obj")
    (root / "chair/LICENSE").write_text("CC0 1.0 Universal")
    trimesh.creation.annulus(0.1, 0.2, 0.6).export(root / "tube.stl")
    sky = np.full((4, 8, 3), 0.5, np.float32)
    load_mitsuba().Bitmap(sky).write(str(root / "sky.hdr"))
    return root


@pytest.fixture(scope="module")
def dataset(meshes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "data"
    render(path, meshes)
    return path


def render(output: Path, meshes: Path, **changes):
    settings = {"seed": 3, "max_distractors": 2, "num_workers": 0, "units": Units("m", "z")} | changes
    return render_assets(output, meshes, settings.pop("num_samples", NUM_SCENES), **settings)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_folder_is_a_dataset_that_says_what_it_was_made_of(dataset):
    report = check_dataset(dataset)
    assert report.problems == ()
    assert report.num_samples == {"train": NUM_SCENES}
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["categories"] == ["chair", "toy cube", "tube"]
    classes = description["segmentation_classes"]
    assert [entry["name"] for entry in classes] == ["floor", "wall", "chair", "toy cube", "tube"]
    assert len({tuple(entry["color"]) for entry in classes}) == 5
    assert description["licence"] == "that of the meshes: chair/LICENSE; 2 meshes have no LICENSE file"
    records = {record["file"]: record for record in description["provenance"]["meshes"]}
    assert records["chair/1.obj"]["licence"]["begins"] == "CC0 1.0 Universal"
    assert records["chair/1.obj"]["extents"] == [0.4, 0.42, 0.925]
    assert list(records["chair/1.obj"]["files"]) == ["chair/1.obj"]
    rows = [json.loads(line) for line in (dataset / "train/manifest.jsonl").read_text().splitlines()]
    assert sorted(row["category"] for row in rows[:3]) == ["chair", "toy cube", "tube"]


def test_words_have_spans_masks_and_only_colours_that_can_be_told(dataset):
    lines = [json.loads(line) for line in (dataset / "train/prompts.jsonl").read_text().splitlines()]
    assert len(lines) == NUM_SCENES
    ids = {"floor": 0, "wall": 1, "chair": 2, "toy cube": 3, "tube": 4}
    texts = []
    for line in lines:
        labels = np.asarray(Image.open(dataset / f"train/segmentation/{line['id']}.png"))
        texts += line["captions"]
        for entity in line["entities"]:
            name = next(name for name in ids if entity["phrase"].endswith(name))
            mask = np.asarray(Image.open(dataset / "train" / entity["mask"])) > 0
            assert set(np.unique(labels[mask])) == {ids[name]}
            for caption, span in zip(line["captions"], entity["spans"], strict=True):
                assert span is None or caption[slice(*span)].endswith(name)
            if name in (
                "chair",
                "toy cube",
            ):  # trimesh writes no colour of a plain mesh into OBJ, so scenes draw the chair's
                assert (entity["phrase"] == "red toy cube") == (name == "toy cube")
            assert entity["images"] == []
    assert not any(word in text for text in texts for word in ("small", "large", "big", "style"))


def test_relations_are_those_of_the_positions(meshes):
    assets = read_catalogue(meshes, Units("m", "z"), 0).assets
    layouts = [sample_asset_layout(1, "train", index, assets) for index in range(60)]
    said = {name: [each for each in layouts if each.relation == name] for name in ("left", "right", "front", "behind")}
    assert all(said[name] for name in ("left", "right", "front"))  # what stands before the main object mostly hides it
    for name, (axis, sign) in {"left": (0, -1), "right": (0, 1), "front": (1, -1), "behind": (1, 1)}.items():
        for layout in said[name]:
            between = np.subtract(layout.objects[0].position, layout.objects[1].position)
            assert between[axis] * sign > 0.75 * np.linalg.norm(between)
    for name, words in (("left", ("left of", "right of")), ("front", ("in front of", "behind"))):
        texts = [
            one.text
            for layout in said[name]
            for seed in range(5)
            for one in captions(layout, np.random.default_rng(seed))
        ]
        assert all(any(word in text for text in texts) for word in words)  # told from either side
    assert layouts[5] == sample_asset_layout(1, "train", 5, assets)
    assert layouts[5].camera != sample_asset_layout(1, "val", 5, assets).camera
    for index in range(6):
        crowd = [
            placed.category for placed in sample_asset_layout(1, "train", index, assets, max_distractors=5).objects
        ]
        assert len(set(crowd)) == len(crowd)
    chairs = {placed.asset.path for layout in layouts for placed in layout.objects if placed.category == "chair"}
    assert chairs == {"chair/0.obj", "chair/1.obj"}


def test_workers_and_interruptions_do_not_change_the_pictures(meshes, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    lit = {"hdri": meshes / "sky.hdr", "num_samples": 2}
    render(one, meshes, **lit)
    report = render(other, meshes, num_workers=2, **lit)
    assert (report.num_rendered, report.num_skipped) == (2, 0)
    assert files_of(one) == files_of(other)
    (other / "train/normal/000001.png").unlink()
    assert render(other, meshes, **lit).num_rendered == 1
    assert files_of(one) == files_of(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"units": Units("m", "y")}, "assets_up was 'z', now 'y'"),
        ({"hdri": "sky.hdr"}, "hdri was None"),
    ],
)
def test_a_folder_holds_scenes_of_one_request(dataset, meshes, changes, message):
    if "hdri" in changes:
        changes = {"hdri": meshes / changes["hdri"]}
    with pytest.raises(UserError, match=message):
        render(dataset, meshes, **changes)


def test_other_meshes_and_solids_are_refused(dataset, meshes, tmp_path):
    before = files_of(dataset)
    copy = tmp_path / "meshes"
    shutil.copytree(meshes, copy)
    assert render(dataset, copy).num_rendered == 0  # the same meshes elsewhere
    (copy / "chair/1.obj").unlink()
    with pytest.raises(UserError, match=r"assets was '\w+', now '\w+'"):
        render(dataset, copy)
    with pytest.raises(UserError, match="generator was 'mmdit data render --assets'"):
        render_dataset(dataset, 1, seed=3, max_distractors=2)
    assert files_of(dataset) == before


def test_bad_meshes_are_listed_and_can_be_left_out(meshes, tmp_path):
    copy, lines = tmp_path / "meshes", []
    shutil.copytree(meshes, copy)
    (copy / "broken.glb").write_bytes(b"glTF")
    (copy / "empty.obj").write_text("")
    with pytest.raises(UserError, match=r"2 meshes can't be used, listed above; --skip_bad"):
        render(tmp_path / "data", copy, report=lines.append)
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines] == ["broken.glb", "empty.obj"]
    assert not (tmp_path / "data").exists()
    render(tmp_path / "data", copy, num_samples=1, skip_bad=True, report=lines.append)
    assert all((tmp_path / f"data/train/{modality}/000000.png").exists() for modality in MODALITIES)
    asset, _ = describe(copy, "tube.stl", "tube", Units())
    trimesh.creation.box().export(copy / "tube.stl")
    with pytest.raises(UserError, match="has changed since the rendering began"):
        asset.load()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("gone", "no such folder"),
        ("nothing", "has no mesh"),
        ("floor", "'Floor' is no name of a category"),
        ("braces", r"braces/{red} chair/1\.obj: '{red} chair' is no name of a category: in prompts braces mark"),
        ("many", "254"),
    ],
)
def test_folders_that_are_none_of_meshes(tmp_path, folder, message):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "floor").mkdir()
    (tmp_path / "floor/Floor.obj").touch()
    (tmp_path / "braces/{red} chair").mkdir(parents=True)
    (tmp_path / "braces/{red} chair/1.obj").touch()
    (tmp_path / "many").mkdir()
    for number in range(254):
        (tmp_path / f"many/{number}.obj").touch()
    with pytest.raises(UserError, match=message):
        render(tmp_path / "data", tmp_path / folder)
    assert not (tmp_path / "data").exists()


def test_depth_of_small_and_large_things_fits_sixteen_bits(tmp_path):
    for name, side in (("pin", 0.02), ("house", 12.0)):
        (tmp_path / name).mkdir()
        trimesh.creation.box(extents=(side, side, side)).export(tmp_path / name / "it.ply")
        render(tmp_path / f"{name}_data", tmp_path / name, num_samples=1)
        scale = json.loads((tmp_path / f"{name}_data/dataset.json").read_text())["depth_scale"]
        assert 20 * side / 65535 <= scale < 22 * side / 65535
        depth = np.asarray(Image.open(tmp_path / f"{name}_data/train/depth/000000.png"))
        assert 4000 < depth.min() < depth.max() < 65535
