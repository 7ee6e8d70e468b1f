from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info, relative_depth_space
from mmdit.errors import UserError
from mmdit.modalities.depth import DepthCodec
from mmdit.sources.folders.dataset import import_folders
from mmdit.storage.lock import FolderLock

SIZE = (12, 16)  # height, width
RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)  # any depth
RISING = np.tile(np.linspace(1000, 9000, 24)[:, None], (1, 20)).astype(np.uint16)


def _rgb(root: Path, *names: str, size: tuple[int, int] = SIZE) -> Path:
    for name in names:
        path = root / "rgb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root / "rgb"


def _maps(root: Path, modality: str, **arrays: np.ndarray) -> Path:
    """PNGs, or .npy of floats."""
    (root / modality).mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            np.save(root / modality / f"{name}.npy", array)
        else:
            Image.fromarray(array).save(root / modality / f"{name}.png")
    return root / modality


def _millimetres(low: int = 1000, high: int = 5000) -> np.ndarray:
    return (low + RAMP * (high - low)).round().astype(np.uint16)


def _import(folders, output, notes=None, **options):
    return import_folders(folders, output, say=(notes if notes is not None else []).append, **options)


def _loaded(output: Path, split: str = "train") -> AlignedFolder:
    assert check_dataset(output).problems == ()
    return AlignedFolder(output, split)


def test_files_are_copied_byte_by_byte_and_matched_by_name(tmp_path):
    rgb = _rgb(tmp_path, "b.jpg", "a.png", "room/c.webp")
    depth = _maps(tmp_path, "depth", a=_millimetres(), b=_millimetres(), alone=_millimetres())
    notes: list[str] = []
    report = _import({"rgb": rgb, "depth": depth}, tmp_path / "out", notes)
    assert (report.num_samples, report.bad) == (3, ())
    rows = [json.loads(line) for line in (tmp_path / "out/train/manifest.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "a", "rgb": "rgb/a.png", "depth": "depth/a.png"},
        {"id": "b", "rgb": "rgb/b.jpg", "depth": "depth/b.png"},
        {"id": "room/c", "rgb": "rgb/room/c.webp"},
    ]
    for row in rows:
        assert (tmp_path / "out/train" / row["rgb"]).read_bytes() == (tmp_path / row["rgb"]).read_bytes()
    assert (tmp_path / "out/train/depth/a.png").read_bytes() == (depth / "a.png").read_bytes()
    assert notes[0] == "1 of 3 images have no depth, first 'room/c'"
    assert notes[1] == "--depth: 1 files without an image are left out, first 'alone'"
    assert notes[2].startswith("--depth: read as distances in metres, 0.001 a unit of whole numbers: 1 to 5 in ")
    assert _loaded(tmp_path / "out")[2]["present"].tolist() == [True, False]


def test_description_has_no_more_than_is_used(tmp_path):
    out = tmp_path / "out"
    _import({"rgb": _rgb(tmp_path, "a.png")}, out)
    assert json.loads((out / "dataset.json").read_text()) == {
        "modalities": ["rgb"],
        "provenance": {
            "generator": "mmdit data import",
            "generator_version": 1,
            "folders": {"train": {"rgb": str(tmp_path / "rgb")}},
        },
    }
    other = tmp_path / "other"
    maps = {"rgb": _rgb(other, "a.png"), "segmentation": _maps(other, "segmentation", a=np.zeros(SIZE, np.uint8))}
    classes = [{"id": 0, "name": "sky", "color": [0, 0, 255]}]
    _import(maps, out, split="val", classes=classes, licence="CC0")
    info = read_dataset_info(out)
    assert (info.modalities, info.licence) == (("rgb", "segmentation"), "CC0")
    assert info.segmentation_classes == tuple(classes)
    assert (len(_loaded(out)), len(_loaded(out, "val"))) == (1, 1)
    with pytest.raises(UserError, match=r"holds labels of another request .segmentation_classes was"):
        _import(maps, out, split="test")


@pytest.mark.parametrize(("values", "space"), [("near_white", "disparity"), ("relative", "depth")])
@pytest.mark.parametrize("bits", [8, 16])
def test_relative_depth_keeps_its_order_and_space(tmp_path, values, space, bits):
    stored = (RAMP * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
    folders = {"rgb": _rgb(tmp_path, "a.png"), "depth": _maps(tmp_path, "depth", a=stored)}
    out = tmp_path / "out"
    _import(folders, out, depth_values=values)
    info = read_dataset_info(out)
    assert relative_depth_space(info) == space  # which `mmdit data encode` takes over
    settings = {"depth": {"space": space, "quantiles": [0, 1]}}
    item = AlignedFolder(out, "train", modalities_from_dataset(info, settings=settings))[0]
    direct = DepthCodec(space, (0, 1)).encode(stored.astype(np.float32), relative=True)
    assert (item["depth"] - direct).abs().max() < 2e-3


def test_distances_of_floats_are_kept_and_what_is_no_number_is_invalid(tmp_path):
    metres = (RAMP * 90 + 0.5).astype(np.float32)
    metres[0, :3] = np.nan, np.inf, 1e10
    folders = {"rgb": _rgb(tmp_path, "a.png"), "depth": _maps(tmp_path, "depth", a=metres)}
    _import(folders, tmp_path / "out")
    stored = np.load(tmp_path / "out/train/depth/a.npy")
    assert stored.dtype == np.float32
    assert (stored[0, :3] == 0).all()
    np.testing.assert_array_equal(stored.ravel()[3:], metres.ravel()[3:])
    assert check_dataset(tmp_path / "out").problems == ()


def test_units_of_whole_numbers(tmp_path):
    folders = {"rgb": _rgb(tmp_path, "a.png"), "depth": _maps(tmp_path, "depth", a=_millimetres())}
    _import(folders, tmp_path / "out", depth_values="metric", depth_scale=0.01)
    assert read_dataset_info(tmp_path / "out").depth_scale == 0.01
    with pytest.raises(UserError, match=r"holds depth of another request \(depth_scale was 0.01, now 0.001\)"):
        _import(folders, tmp_path / "out", depth_values="metric")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ((RAMP * 255).astype(np.uint8), "a.png: has 8 bits, a picture of depth: say what it holds with --depth_values"),
        (RAMP.astype(np.float32), r"a.npy: holds floats within \[0, 1\]: say .*near_white .*relative .*metric"),
        ((RAMP * 65535).astype(np.uint16), "a.png: its 16 bits are stretched to the whole range, up to 65535: say"),
    ],
)
def test_depth_that_could_be_anything_is_asked_about(tmp_path, array, expected):
    folders = {"rgb": _rgb(tmp_path, "a.png"), "depth": _maps(tmp_path, "depth", a=array)}
    with pytest.raises(UserError, match=expected):
        _import(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_distances_that_grow_towards_the_bottom_are_doubted(tmp_path):
    folders = {"rgb": _rgb(tmp_path, "a.png", size=RISING.shape), "depth": _maps(tmp_path, "depth", a=RISING)}
    notes: list[str] = []
    _import(folders, tmp_path / "out", notes)
    assert notes[-1].startswith("--depth: read as distances in metres")
    assert (
        "they grow towards the bottom, which is usually nearer: if larger is nearer, give --depth_values near_white"
        in notes[-1]
    )


def test_our_own_depth_files_say_what_they_are(tmp_path):
    codec = DepthCodec("disparity")
    folders = {"rgb": _rgb(tmp_path, "a.png"), "depth": tmp_path / "depth"}
    folders["depth"].mkdir()
    (folders["depth"] / "a.png").write_bytes(codec.files(RAMP.astype(np.float32))["depth.png"])
    notes: list[str] = []
    _import(folders, tmp_path / "out", notes)
    assert notes == ["--depth: read as relative disparity, as the files say"]
    assert relative_depth_space(read_dataset_info(tmp_path / "out")) == "disparity"


def test_bad_samples_are_named_and_tried_again(tmp_path):
    rgb = _rgb(tmp_path, "good.png", "cut.png", "small.png", "two.png", "two.jpg")
    small = np.full((6, 8), 900, np.uint16)
    depth = _maps(tmp_path, "depth", good=_millimetres(), cut=_millimetres(), small=small, two=_millimetres())
    (rgb / "cut.png").write_bytes((rgb / "cut.png").read_bytes()[:80])
    out = tmp_path / "out"
    report = _import({"rgb": rgb, "depth": depth}, out)
    assert report.num_samples == 1
    bad = {Path(entry.path).name: entry.reason for entry in report.bad}
    assert bad.keys() == {"two.jpg", "cut.png", "small.png"}
    assert bad["two.jpg"] == "two.png beside it has the same name: leave one of them in the folder"
    assert "damaged" in bad["cut.png"]
    assert bad["small.png"] == f"6 x 8 pixels (height x width), {rgb}/small.png has 12 x 16"
    assert len(_loaded(out)) == 1
    (rgb / "two.jpg").unlink()
    _rgb(tmp_path, "cut.png")
    report = _import({"rgb": rgb, "depth": depth}, out)
    assert (report.num_samples, len(report.bad)) == (3, 1)


def test_goes_on_and_imports_changed_files_again(tmp_path):
    rgb, depth = _rgb(tmp_path, "a.png", "b.png"), _maps(tmp_path, "depth", a=_millimetres(), b=_millimetres())
    out = tmp_path / "out"
    _import({"rgb": rgb, "depth": depth}, out)
    made = {path: path.stat().st_ino for path in out.rglob("*.png")}
    assert len(made) == 4
    _maps(tmp_path, "depth", b=_millimetres(high=7000))
    assert _import({"rgb": rgb, "depth": depth}, out).num_samples == 2
    assert {path.parent.name + path.name for path, node in made.items() if path.stat().st_ino == node} == {
        "rgba.png",
        "deptha.png",
    }
    assert (out / "train/depth/b.png").read_bytes() == (depth / "b.png").read_bytes()
    (out / "train/rgb/a.png").unlink()  # as if a run had ended before it
    assert _import({"rgb": rgb, "depth": depth}, out).num_samples == 2
    assert (out / "train/rgb/a.png").exists()
    (rgb / "a.png").unlink()
    assert _import({"rgb": rgb, "depth": depth}, out).num_samples == 1


def test_images_turned_by_their_tag(tmp_path):
    """Depth as the sensor stored it is turned with the picture by the loader; the files stay as they are."""
    rgb = tmp_path / "rgb"
    rgb.mkdir()
    image = Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(rgb / "a.jpg", exif=exif)
    _import({"rgb": rgb, "depth": _maps(tmp_path, "depth", a=_millimetres())}, tmp_path / "out")
    assert _loaded(tmp_path / "out")[0]["depth"].shape == (3, *SIZE[::-1])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rgb": "nowhere"}, "--rgb nowhere: no such folder"),
        ({"depth": "empty"}, "--depth empty: no file of depth in it"),
        ({"depth": "other"}, "--depth other: none of its names, such as 'x_depth', is one of --rgb's, such as 'a'"),
        ({"output": "rgb"}, "--rgb rgb and --output rgb lie one in the other"),
        ({"output": "rgb/out"}, "--rgb rgb and --output rgb/out lie one in the other"),
        ({"split": "a/b"}, "split 'a/b'"),
    ],
)
def test_folders_that_cannot_be_imported(tmp_path, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    _rgb(tmp_path, "a.png")
    _maps(tmp_path, "depth", a=_millimetres())
    _maps(tmp_path, "other", x_depth=_millimetres())
    Path("empty").mkdir()
    given = {"rgb": "rgb", "depth": "depth", "output": "out", "split": "train"} | change
    output, split = given.pop("output"), given.pop("split")
    with pytest.raises(UserError, match=expected) as caught:
        _import(given, output, split=split)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_output_of_something_else_is_refused(tmp_path, make_dataset):
    rgb = _rgb(tmp_path, "a.png")
    with pytest.raises(UserError, match="says nothing of its provenance; choose an empty folder"):
        _import({"rgb": rgb}, make_dataset(num_samples=1))
    rendered = make_dataset(num_samples=1, provenance={"generator": "mmdit data render"})
    with pytest.raises(UserError, match=r"holds data of another request .generator was 'mmdit data render'"):
        _import({"rgb": rgb}, rendered)
    out = tmp_path / "out"
    _import({"rgb": rgb, "depth": _maps(tmp_path, "depth", a=_millimetres())}, out)
    with pytest.raises(UserError, match=r"the split 'train' has depth of .*: give --depth again, or another --split"):
        _import({"rgb": rgb}, out)
    other = _rgb(tmp_path / "elsewhere", "a.png")
    with pytest.raises(UserError, match="the same name would be another image: give another --split or --output"):
        _import({"rgb": other, "depth": tmp_path / "depth"}, out)
    with FolderLock(out, "a test"), pytest.raises(UserError, match="a test"):
        _import({"rgb": rgb, "depth": tmp_path / "depth"}, out)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2]])
def test_files_that_were_cut_off_are_imported_again(tmp_path, damage):
    rgb = _rgb(tmp_path, "a.jpg", "b.png")
    depth = _maps(tmp_path, "depth", a=RAMP + 1, b=RAMP + 2)
    _import({"rgb": rgb, "depth": depth}, tmp_path / "out")
    made = [tmp_path / "out/train" / name for name in ("rgb/a.jpg", "rgb/b.png", "depth/a.npy")]
    whole = [path.read_bytes() for path in made]
    for path in made:
        path.write_bytes(damage(path.read_bytes()))
    _import({"rgb": rgb, "depth": depth}, tmp_path / "out")
    assert [path.read_bytes() for path in made] == whole
    stamps = [path.stat().st_mtime_ns for path in made]
    _import({"rgb": rgb, "depth": depth}, tmp_path / "out")
    assert [path.stat().st_mtime_ns for path in made] == stamps
