"""What `data check` says of a sample and what the loader does with it are one judgement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.data.folder import AlignedFolder
from mmdit.errors import UserError
from mmdit.modalities.depth import DEPTH_SPACE_KEY
from mmdit.modalities.files import png

WIDTH, HEIGHT = 16, 12
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
DEPTH = RNG.integers(1000, 9000, (HEIGHT, WIDTH)).astype(np.uint16)
LABELS = RNG.choice([0, 1, 255], (HEIGHT, WIDTH)).astype(np.uint8)
VECTORS = RNG.normal(size=(HEIGHT, WIDTH, 3))
VECTORS /= np.linalg.norm(VECTORS, axis=-1, keepdims=True)
CLASSES = [{"id": i, "name": n, "color": c} for i, n, c in ((0, "a", [0, 0, 0]), (1, "b", [255, 0, 0]))]


def dataset(root: Path, modality: str, file: str, **changes: object) -> Path:
    """One sample: a good picture, and one file of the modality beside it in ``<split>/x/``."""
    picture = root / "train" / "x" / "rgb.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    if not picture.exists():
        Image.fromarray(RGB).save(picture)
    row = {"id": "0", "rgb": "x/rgb.png", modality: f"x/{file}"}
    description = {
        "modalities": ["rgb", "depth", "normal", "segmentation"],
        "categories": [],
        "segmentation_classes": CLASSES,
        "depth_scale": 0.001,
        "licence": "CC0-1.0",
        "provenance": "numbers",
    }
    (root / "dataset.json").write_text(json.dumps(description | changes))
    (root / "train" / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    return root


def judged(root: Path) -> tuple[list[str], str]:
    """(what check lists, what the loader raises)."""
    problems = [problem.reason for problem in check_dataset(root).problems]
    try:
        AlignedFolder(root)[0]
    except UserError as error:
        return problems, str(error)
    return problems, ""


def image(array: np.ndarray, mode: str | None = None) -> Image.Image:
    made = Image.fromarray(array)
    return made if mode is None else made.convert(mode)


GOOD = {
    "grey": ("rgb", "a.png", image(RGB[..., 0])),
    "grey with alpha": ("rgb", "a.png", image(RGB[..., 0], "LA")),
    "alpha": ("rgb", "a.png", image(RGB, "RGBA")),
    "palette": ("rgb", "a.png", image(RGB, "P")),
    "16 bits": ("rgb", "a.png", image(DEPTH)),
    "bits": ("rgb", "a.png", image(RGB, "1")),
    "CMYK": ("rgb", "a.tif", image(RGB, "CMYK")),
    "depth": ("depth", "d.png", image(DEPTH)),
    "depth of 32 bits": ("depth", "d.tif", image(DEPTH.astype(np.int32))),
    "depth of floats": ("depth", "d.TIFF", image(DEPTH.astype(np.float32) / 1000)),
    "depth array": ("depth", "d.npy", DEPTH / 1000),
    "whole numbers": ("depth", "d.npy", DEPTH.astype(np.int64)),
    "normal": ("normal", "n.png", image(np.round((VECTORS + 1) / 2 * 255).astype(np.uint8))),
    "normal array": ("normal", "n.npy", VECTORS),
    "labels": ("segmentation", "s.png", image(LABELS % 2)),
    "indexed labels": ("segmentation", "s.png", image(LABELS % 2, "P").convert("L").convert("P")),
}
BAD = {
    "float picture": ("rgb", "a.tif", image(RGB[..., 0].astype(np.float32)), "32-bit floats has no known range"),
    "picture of another size": ("depth", "d.png", image(DEPTH[:8]), "size (height x width): rgb 12 x 16, depth 8 x 16"),
    "8-bit depth": ("depth", "d.png", image(RGB[..., 0]), "has 8 bits"),
    "colour depth": ("depth", "d.png", image(RGB), "one channel"),
    "our own relative depth": ("depth", "d.png", png(DEPTH, {DEPTH_SPACE_KEY: "disparity"}), "holds relative depth"),
    "no valid depth": ("depth", "d.png", image(DEPTH * 0), "no valid pixel"),
    "NaN": ("depth", "d.npy", np.where(DEPTH > 5000, np.nan, DEPTH), "NaN or infinite"),
    "negative": ("depth", "d.npy", 1.0 - DEPTH, "negative"),
    "complex": ("depth", "d.npy", DEPTH + 1j, "holds complex128"),
    "structured": ("depth", "d.npy", np.zeros((HEIGHT, WIDTH), [("z", "f4")]), "a structured array"),
    "dates": ("depth", "d.npy", np.zeros((HEIGHT, WIDTH), "M8[s]"), "holds dates"),
    "long normals": ("normal", "n.npy", VECTORS * 1.2, "not of unit length"),
    "normals of two channels": ("normal", "n.npy", VECTORS[..., :2], "give numbers of shape (height, width, 3)"),
    "no normals": ("normal", "n.npy", VECTORS * 0, "no valid pixel"),
    "255 as a label": ("segmentation", "s.png", image(np.maximum(LABELS, 255)), "unknown labels 255"),
    "colour labels": ("segmentation", "s.png", image(RGB), "one channel of label ids"),
    "labels in an array": ("segmentation", "s.npy", LABELS, ".npy files are not read"),
    "text": ("depth", "d.png", b"hello", "not an image"),
}


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        content.save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)


@pytest.mark.parametrize("kind", GOOD)
def test_both_accept(tmp_path, kind):
    modality, file, content = GOOD[kind]
    _write(tmp_path / "train/x" / file, content)
    assert judged(dataset(tmp_path, modality, file)) == ([], "")


@pytest.mark.parametrize("kind", BAD)
def test_both_refuse_with_the_same_words(tmp_path, kind):
    modality, file, content, message = BAD[kind]
    _write(tmp_path / "train/x" / file, content)
    problems, raised = judged(dataset(tmp_path, modality, file))
    assert message in problems[0]
    assert problems[0] in raised


@pytest.mark.parametrize("seed", range(6))
def test_both_agree_on_random_arrays(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for index in range(25):
        modality = str(rng.choice(["depth", "normal"]))
        shape = tuple(rng.choice([1, 3, HEIGHT, WIDTH], rng.integers(1, 4)))
        shape = (rng.choice([0, 1]) and shape) or ((HEIGHT, WIDTH) if modality == "depth" else (HEIGHT, WIDTH, 3))
        array = rng.normal(size=shape) * rng.choice([0, 1, 1e3, 1e38])
        array = np.abs(array) if rng.random() < 0.5 else array
        file = f"{index}.npy"
        with np.errstate(all="ignore"):
            _write(tmp_path / "train/x" / file, array.astype(rng.choice(["f2", "f4", "f8", "i2"])))
            problems, raised = judged(dataset(tmp_path, modality, file))
        assert bool(problems) == bool(raised), (problems, raised)


@pytest.mark.parametrize(
    ("width", "height", "turned", "fine"), [(64, 48, False, True), (64, 48, True, True), (64, 64, False, False)]
)
def test_orientation_of_a_camera(tmp_path, width, height, turned, fine):
    """A picture that is brighter downwards as stored, turned by its tag; its depth as stored, or as seen."""
    rows = np.arange(height, dtype=np.uint8)[:, None].repeat(width, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train/x").mkdir(parents=True)
    Image.fromarray(np.stack([rows] * 3, axis=-1)).save(tmp_path / "train/x/rgb.png", exif=exif)
    depth = Image.fromarray(rows.astype(np.uint16) * 100 + 100)
    (depth.transpose(Image.Transpose.ROTATE_270) if turned else depth).save(tmp_path / "train/x/d.png")
    root = dataset(tmp_path, "depth", "d.png")
    problems, raised = judged(root)
    assert (problems == []) is (raised == "") is fine
    if fine:
        item = AlignedFolder(root)[0]
        assert item["rgb"].shape == (3, width, height)
        seen = item["rgb"][0].numpy()
        assert (np.diff(seen, axis=1) < 0).all()  # as stored it is brighter downwards: as seen, to the left
        assert (np.diff(item["depth"][0].numpy(), axis=1) >= 0).all()  # and far there: disparity falls to the left
    else:
        assert "EXIF orientation 6" in raised
