"""One corruption at a time in a small, sound dataset: each is found, and blamed on its sample alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.data.folder import AlignedFolder
from mmdit.errors import UserError

HEIGHT, WIDTH = 12, 16
CLASSES = [
    {"id": 0, "name": "floor", "color": [0, 0, 0]},
    {"id": 1, "name": "wall", "color": [0, 0, 255]},
    {"id": 2, "name": "torus", "color": [255, 0, 0]},
    {"id": 3, "name": "cone", "color": [0, 255, 0]},
]


def unit_normals(rng: np.random.Generator) -> np.ndarray:
    normals = rng.normal(size=(HEIGHT, WIDTH, 3))
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of dataset.json; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_row(root: Path, number: int, **changes: object) -> None:
    path = root / "train" / "manifest.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four samples in train, one in val; sample "2" has .npy depth and normals, "3" has neither."""
    rng = np.random.default_rng(0)
    description = {
        "modalities": ["rgb", "depth", "normal", "segmentation"],
        "categories": ["torus", "cone"],
        "segmentation_classes": CLASSES,
        "depth_scale": 0.001,
        "licence": "CC0-1.0",
        "provenance": "made by hand",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    for split, names in {"train": "0123", "val": "0"}.items():
        folder = tmp_path / split
        rows = []
        for name in names:
            row = {"id": name, "category": "cone"}
            arrays = {
                "rgb": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
                "depth": rng.integers(0, 5000, (HEIGHT, WIDTH), dtype=np.uint16),
                "normal": np.round((unit_normals(rng) + 1) / 2 * 255).astype(np.uint8),
                "segmentation": rng.integers(0, 4, (HEIGHT, WIDTH), dtype=np.uint8),
            }
            for modality, array in arrays.items():
                (folder / modality).mkdir(parents=True, exist_ok=True)
                if name == "3" and modality in ("depth", "normal"):
                    continue
                row[modality] = f"{modality}/{name}.png"
                if name == "2" and modality in ("depth", "normal"):
                    row[modality] = f"{modality}/{name}.npy"
                    values = unit_normals(rng) if modality == "normal" else array / 1000
                    np.save(folder / row[modality], values.astype(np.float32))
                else:
                    save(folder / row[modality], array)
            rows.append(row)
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_sound_dataset_has_no_problem(root):
    report = check_dataset(root)
    assert report.problems == ()
    assert report.num_samples == {"train": 4, "val": 1}
    assert report.bad_samples == ()
    assert check_dataset(root, split="val").num_samples == {"val": 1}


def flip_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def long_normals(root: Path) -> None:
    normals = np.asarray(Image.open(root / "train/normal/1.png")).copy()
    normals[3, 4] = (255, 255, 255)
    save(root / "train/normal/1.png", normals)


def npy_with(root: Path, name: str, value: float) -> None:
    array = np.load(root / "train" / name)
    array.reshape(-1)[7] = value
    np.save(root / "train" / name, array)


FILE_CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda r: (r / "train/rgb/1.png").unlink(), "train/1", "train/rgb/1.png: no such file"),
    "empty": (lambda r: (r / "train/rgb/1.png").write_bytes(b""), "train/1", "the file is empty"),
    "truncated": (
        lambda r: (r / "train/rgb/1.png").write_bytes((r / "train/rgb/1.png").read_bytes()[:-100]),
        "train/1",
        "damaged",
    ),
    "end cut off": (
        lambda r: (r / "train/depth/1.png").write_bytes((r / "train/depth/1.png").read_bytes()[:-12]),
        "train/1",
        "damaged",
    ),
    "changed byte": (lambda r: flip_bytes(r / "train/segmentation/0.png"), "train/0", "damaged"),
    "no image": (lambda r: (r / "train/rgb/1.png").write_text("hello"), "train/1", "not an image"),
    "truncated npy": (
        lambda r: (r / "train/depth/2.npy").write_bytes((r / "train/depth/2.npy").read_bytes()[:-40]),
        "train/2",
        "damaged",
    ),
    "pickled npy": (
        lambda r: np.save(r / "train/depth/2.npy", np.array([{}], dtype=object), allow_pickle=True),
        "train/2",
        "holds objects (1,); give numbers",
    ),
    "other size": (
        lambda r: save(r / "train/segmentation/1.png", np.zeros((HEIGHT, WIDTH + 4), np.uint8)),
        "train/1",
        "rgb 12 x 16, depth 12 x 16, normal 12 x 16, segmentation 12 x 20",
    ),
    "long normal": (long_normals, "train/1", "1 normals are not of unit length: one has 1.732"),
    "short npy normal": (
        lambda r: np.save(r / "train/normal/2.npy", np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)),
        "train/2",
        f"{HEIGHT * WIDTH} normals are not of unit length: one has 0.866",
    ),
    "no normal": (
        lambda r: save(r / "train/normal/1.png", np.full((HEIGHT, WIDTH, 3), 128, np.uint8)),
        "train/1",
        "no valid pixel",
    ),
    "nan depth": (lambda r: npy_with(r, "depth/2.npy", np.nan), "train/2", "1 values are NaN or infinite"),
    "infinite depth": (lambda r: npy_with(r, "depth/2.npy", np.inf), "train/2", "1 values are NaN or infinite"),
    "negative depth": (lambda r: npy_with(r, "depth/2.npy", -2.0), "train/2", "1 pixels are negative"),
    "nan normal": (lambda r: npy_with(r, "normal/2.npy", np.nan), "train/2", "1 values are NaN or infinite"),
    "empty depth": (
        lambda r: save(r / "train/depth/1.png", np.zeros((HEIGHT, WIDTH), np.uint16)),
        "train/1",
        "no valid pixel: all are 0",
    ),
    "8-bit depth": (
        lambda r: save(r / "train/depth/1.png", np.ones((HEIGHT, WIDTH), np.uint8)),
        "train/1",
        "must be one channel, 16-bit PNG",
    ),
    "unknown label": (
        lambda r: save(r / "train/segmentation/1.png", np.full((HEIGHT, WIDTH), 9, np.uint8)),
        "train/1",
        f"unknown labels 9 on {HEIGHT * WIDTH} pixels",
    ),
    "coloured labels": (
        lambda r: save(r / "train/segmentation/1.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        "train/1",
        "must be one channel of label ids",
    ),
    "rgb in npy": (lambda r: edit_row(r, 2, rgb="depth/2.npy"), "train/2", ".npy files are not read for rgb"),
    "bad category": (
        lambda r: edit_row(r, 1, category="tourus"),
        "train/1",
        "unknown category 'tourus': did you mean 'torus'",
    ),
    "twice": (lambda r: edit_row(r, 1, id="0"), "train/0", "manifest.jsonl:2: id '0' appears twice, first on line 1"),
    "no path": (lambda r: edit_row(r, 1, rgb=7), "train/1", "rgb is 7"),
    "labels in npy": (
        lambda r: edit_row(r, 2, segmentation="depth/2.npy"),
        "train/2",
        ".npy files are not read for segmentation",
    ),
    "nothing": (
        lambda r: edit_row(r, 3, rgb=None, segmentation=None),
        "train/3",
        "no modality: give the path",
    ),
}


@pytest.mark.parametrize("kind", FILE_CORRUPTIONS)
def test_finds_a_bad_sample(root, kind):
    corrupt, sample, message = FILE_CORRUPTIONS[kind]
    corrupt(root)
    report = check_dataset(root)
    assert report.bad_samples == (sample,)
    assert any(message in str(problem) for problem in report.problems), report.problems


@pytest.mark.parametrize("kind", FILE_CORRUPTIONS)
def test_the_loader_refuses_the_same_samples(root, kind):
    FILE_CORRUPTIONS[kind][0](root)
    report = check_dataset(root)
    try:
        folder = AlignedFolder(root)
    except UserError:
        assert any(problem.file == "train/manifest.jsonl" for problem in report.problems)
        return
    bad = []
    for index, sample in enumerate(folder.samples):
        try:
            folder[index]
        except UserError:
            bad.append(f"train/{sample.id}")
    assert report.bad_samples == tuple(bad)


def test_lists_every_bad_sample_in_order(root):
    (root / "train/rgb/0.png").unlink()
    (root / "train/rgb/3.png").write_bytes(b"")
    (root / "val/depth/0.png").unlink()
    report = check_dataset(root)
    assert report.bad_samples == ("train/0", "train/3", "val/0")
    assert len(report.problems) == 3
    assert check_dataset(root, split="val").bad_samples == ("val/0",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "9", "rgb"', "manifest.jsonl:5: not JSON"),
        ('["9"]', "manifest.jsonl:5: holds ['9']"),
        ('{"rgb": "rgb/0.png"}', "manifest.jsonl:5: 'id' is None"),
        ('{"id": "", "rgb": "rgb/0.png"}', "manifest.jsonl:5: 'id' is ''"),
    ],
)
def test_finds_a_malformed_manifest_line_and_reads_on(root, line, message):
    manifest = root / "train/manifest.jsonl"
    manifest.write_text(manifest.read_text() + line + "\n" + '{"id": "10", "rgb": "rgb/none.png"}\n')
    reasons = [str(problem) for problem in check_dataset(root).problems]
    assert len(reasons) == 2
    assert message in reasons[0]
    assert "rgb/none.png: no such file" in reasons[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": None}, "'modalities' is missing"),
        ({"depth_scale": -1}, "'depth_scale' is -1"),
        (
            {"modalities": ["rgb", "depth", "normals", "segmentation"]},
            "unknown modality 'normals': did you mean 'normal'",
        ),
        ({"categories": ["torus", "cone", "cone"]}, "'categories' names 'cone' twice"),
        ({"categories": "torus cone"}, "give a list of names"),
        ({"segmentation_classes": [*CLASSES, CLASSES[1]]}, "'segmentation_classes' has id 1 twice"),
        ({"segmentation_classes": [{"id": 0}]}, "'segmentation_classes' must be a list of"),
    ],
)
def test_finds_what_is_wrong_in_dataset_json(root, changes, message):
    edit_json(root / "dataset.json", **changes)
    problems = [problem for problem in check_dataset(root).problems if problem.where == "dataset.json"]
    assert any(message in problem.reason for problem in problems), problems


def test_finds_a_misspelt_modality_and_leaves_the_users_own_keys_alone(root):
    manifest = root / "train/manifest.jsonl"
    first, *others = manifest.read_text().splitlines()
    misspelt = {"normals" if key == "normal" else key: value for key, value in json.loads(first).items()}
    manifest.write_text("\n".join([json.dumps(misspelt | {"camera": [1, 2], "depth_source": "lidar"}), *others]) + "\n")
    (problem,) = check_dataset(root).problems
    assert str(problem).startswith("train/manifest.jsonl:1: unknown key 'normals': did you mean 'normal'?")


def test_finds_a_modality_that_dataset_json_does_not_name(root):
    edit_json(root / "dataset.json", modalities=["rgb", "depth", "segmentation"])
    report = check_dataset(root)
    assert report.bad_samples == ("train/0", "train/1", "train/2", "val/0")
    assert all("'normal' is not among those of dataset.json" in problem.reason for problem in report.problems)


def test_a_missing_description_or_split_is_a_problem(root):
    (root / "dataset.json").unlink()
    (problem,) = check_dataset(root).problems
    assert str(problem).startswith("dataset.json: no such file; a dataset folder needs a dataset.json")
    (root / "train/manifest.jsonl").write_text("")
    assert "train/manifest.jsonl: lists no sample" in [str(problem) for problem in check_dataset(root).problems]
    (root / "train/manifest.jsonl").unlink()
    (root / "val/manifest.jsonl").unlink()
    assert any("no split" in problem.reason for problem in check_dataset(root).problems)


def test_wrong_arguments_are_refused(root):
    with pytest.raises(UserError, match="no such folder"):
        check_dataset(root / "nowhere")
    with pytest.raises(UserError, match="has no split 'test': known are train, val"):
        check_dataset(root, split="test")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_over_the_pixel_limit_is_a_problem(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH)
    save(root / "train/rgb/0.png", np.zeros((HEIGHT + 1, WIDTH, 3), np.uint8))
    report = check_dataset(root)
    assert report.bad_samples == ("train/0",)
    assert "more than 192 pixels" in str(report.problems[0])


def test_an_rgb_dataset_needs_the_name_of_its_modality_alone(tmp_path):
    (tmp_path / "dataset.json").write_text('{"modalities": ["rgb"]}')
    (tmp_path / "train").mkdir()
    save(tmp_path / "train/a.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    (tmp_path / "train/manifest.jsonl").write_text(
        '{"id": "a", "rgb": "a.png"}\n\n{"id": "b", "rgb": "a.png", "depth": null}\n'
    )
    assert check_dataset(tmp_path).problems == ()


@pytest.fixture
def prompted(root: Path) -> Path:
    """One sample of train has a caption, with a mask of its object and another picture of it."""
    folder = root / "train"
    save(folder / "mask.png", np.pad(np.full((4, 4), 255, np.uint8), ((2, 6), (3, 9))))
    save(folder / "other.png", np.full((8, 8, 3), 90, np.uint8))
    entity = {"phrase": "cone", "spans": [[2, 6]], "box": [3, 2, 7, 6], "mask": "mask.png", "images": ["other.png"]}
    (folder / "prompts.jsonl").write_text(json.dumps({"id": "1", "captions": ["a cone"], "entities": [entity]}) + "\n")
    assert not check_dataset(root).problems
    return root


def edit_entity(root: Path, **changes: object) -> None:
    path = root / "train" / "prompts.jsonl"
    line = json.loads(path.read_text())
    line["entities"][0] |= changes
    path.write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / "train/mask.png").write_bytes(b""), "mask.png: "),
        (
            lambda root: (root / "train/mask.png").write_bytes((root / "train/mask.png").read_bytes()[:60]),
            "mask.png: ",
        ),
        (lambda root: (root / "train/other.png").write_text("no picture"), "other.png: "),
        (
            lambda root: save(root / "train/mask.png", np.zeros((10, 7), np.uint8)),
            f"mask.png: the mask is 10 x 7, its picture {HEIGHT} x {WIDTH}: give one size",
        ),
        (
            lambda root: edit_entity(root, box=[1400, 2, 5500, 6]),
            f"entity 'cone': box [1400, 2, 5500, 6] is outside its picture of {WIDTH} x {HEIGHT}",
        ),
    ],
)
def test_what_prompts_name_is_read(prompted: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(prompted)
    (problem,) = check_dataset(prompted).problems
    assert (problem.file, problem.sample) == ("train/prompts.jsonl", "train/1")
    assert expected in problem.reason
    assert "\n" not in problem.reason


@pytest.mark.parametrize("content", ["", "\n"])
def test_prompts_without_a_line_are_a_problem(prompted: Path, content: str) -> None:
    (prompted / "train/prompts.jsonl").write_text(content)
    (problem,) = check_dataset(prompted).problems
    assert str(problem).startswith("train/prompts.jsonl: lists no prompt")


def test_a_picture_that_is_wrong_itself_is_blamed_once(prompted: Path) -> None:
    (prompted / "train/rgb/1.png").write_bytes(b"")
    problems = [str(problem) for problem in check_dataset(prompted).problems]
    assert problems
    assert not [problem for problem in problems if "prompts.jsonl" in problem]
