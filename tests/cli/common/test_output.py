from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.cli.common.inputs import read_condition
from mmdit.cli.common.output import Sample, SampleWriter, prepare_file, prepare_folder
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codecs, get_modalities

CLASSES = [{"id": 0, "name": "floor", "color": [1, 2, 3]}, {"id": 4, "name": "torus", "color": [250, 0, 99]}]
RECORDS = get_modalities(["rgb", "depth", "normal", "segmentation"])
RECORDS["depth"] = RECORDS["depth"].replace(quantiles=[0.0, 1.0])
RECORDS["segmentation"] = RECORDS["segmentation"].replace(classes=CLASSES)
CODECS = build_codecs(RECORDS)
SAMPLE_FILES = {
    *("rgb.png", "depth.npy", "depth.png", "depth_vis.png", "normal.npy", "normal.png", "segmentation.png"),
    *("grid.png", "metadata.json"),
}


def _sample(name="torus_0", seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(8, 10, 3))
    depth = rng.random((8, 10), dtype=np.float32)
    depth.flat[:2] = 0, 1
    arrays = {
        "rgb": rng.integers(0, 256, (8, 10, 3), dtype=np.uint8),
        "depth": depth,
        "normal": (normal / np.linalg.norm(normal, axis=-1, keepdims=True)).astype(np.float32),
        "segmentation": rng.choice([0, 4], (8, 10)),
    }
    return Sample(name, arrays, {"seed": seed, "conditions": {"rgb": {"path": "a.png"}}, "device": "cpu"})


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_file_is_there_and_says_the_same(tmp_path):
    sample = _sample()
    folder = SampleWriter(tmp_path, RECORDS).write(sample)
    assert _names(folder) == SAMPLE_FILES
    assert _names(tmp_path) == {"torus_0"}

    arrays = sample.arrays
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "rgb.png")), arrays["rgb"])
    depth = np.load(folder / "depth.npy")
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, arrays["depth"])
    with Image.open(folder / "depth.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_allclose(np.asarray(image) / 65535, depth, atol=1e-5)
    assert Image.open(folder / "depth_vis.png").mode == "RGB"
    np.testing.assert_array_equal(np.load(folder / "normal.npy"), arrays["normal"])
    np.testing.assert_allclose(
        np.asarray(Image.open(folder / "normal.png")) / 127.5 - 1, arrays["normal"], atol=1 / 127
    )
    with Image.open(folder / "segmentation.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), arrays["segmentation"])
        palette = np.array(image.getpalette()).reshape(-1, 3)
        assert palette[4].tolist() == [250, 0, 99]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["seed"] == 0
    assert metadata["depth_space"] == "disparity"
    assert metadata["segmentation_classes"] == CLASSES
    assert "torch" in metadata["versions"]


@pytest.mark.parametrize("file", ["depth.npy", "depth.png", "normal.npy", "normal.png", "segmentation.png", "rgb.png"])
def test_what_is_written_can_be_given_back(tmp_path, file):
    sample = _sample()
    folder = SampleWriter(tmp_path, RECORDS).write(sample)
    name = file.split(".")[0]
    condition = read_condition(folder / file, CODECS[name])
    again = CODECS[name].decode(CODECS[name].encode_reading(condition)[None])[0]
    np.testing.assert_allclose(again, sample.arrays[name], atol=1 / 127 if file == "normal.png" else 1e-4)
    assert condition.note is None


def test_labels_beyond_8_bits(tmp_path):
    classes = [{"id": 0, "name": "a", "color": [0, 0, 0]}, {"id": 300, "name": "b", "color": [255, 0, 0]}]
    records = {"segmentation": MODALITIES["segmentation"].replace(classes=classes)}
    labels = np.array([[0, 300], [300, 0]])
    folder = SampleWriter(tmp_path, records).write(Sample("s", {"segmentation": labels}, {}))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "segmentation.png")), labels)


def test_same_request_replaces_and_another_is_refused(tmp_path):
    writer = SampleWriter(tmp_path, RECORDS)
    writer.write(_sample())
    writer.check({"torus_0": _sample().request}, 80)
    folder = writer.write(_sample())
    with pytest.raises(UserError, match=r"seed was 0, now 1.*--overwrite"):
        writer.check({"torus_0": _sample(seed=1).request}, 80)
    with pytest.raises(UserError, match="another request"):
        writer.write(_sample(seed=1))
    with pytest.raises(UserError, match=r"seed was 0, now 1, category was None, now 'cone'"):
        writer.check({"torus_0": {**_sample(seed=1).request, "category": "cone"}}, 80)
    assert json.loads((folder / "metadata.json").read_text())["seed"] == 0
    SampleWriter(tmp_path, RECORDS, overwrite=True).write(_sample(seed=1))
    assert json.loads((folder / "metadata.json").read_text())["seed"] == 1
    assert _names(tmp_path) == {"torus_0"}


def test_metadata_keeps_file_names_that_are_not_utf8(tmp_path):
    writer = SampleWriter(tmp_path, RECORDS)
    request = {**_sample().request, "conditions": {"rgb": {"path": "ü \udcff.png"}}}
    for _ in range(2):
        folder = writer.write(Sample("torus_0", _sample().arrays, request))
    assert json.loads((folder / "metadata.json").read_text("utf-8"))["conditions"] == request["conditions"]


def test_the_device_is_no_part_of_the_request(tmp_path):
    writer = SampleWriter(tmp_path, RECORDS)
    writer.write(_sample())
    elsewhere = {**_sample().request, "device": "cuda:0"}
    writer.check({"torus_0": elsewhere}, 80)
    folder = writer.write(Sample("torus_0", _sample().arrays, elsewhere))
    assert json.loads((folder / "metadata.json").read_text())["device"] == "cuda:0"
    with pytest.raises(UserError, match=r"another request \(seed was 0, now 1\)"):  # the device is not named
        writer.check({"torus_0": {**_sample(seed=1).request, "device": "cpu"}}, 80)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_that_hold_anything_else_are_never_touched(tmp_path, overwrite):
    (tmp_path / "torus_0").mkdir()
    (tmp_path / "torus_0" / "thesis.tex").write_text("years of work")
    (tmp_path / "cone_0").write_text("a file")
    writer = SampleWriter(tmp_path, RECORDS, overwrite)
    with pytest.raises(UserError, match=r"thesis\.tex"):
        writer.check({"torus_0": {}}, 80)
    with pytest.raises(UserError, match="is a file"):
        writer.check({"cone_0": {}}, 80)
    assert (tmp_path / "torus_0" / "thesis.tex").read_text() == "years of work"


def test_foreign_files_with_our_names_are_not_replaced(tmp_path):
    (tmp_path / "torus_0").mkdir()
    (tmp_path / "torus_0" / "rgb.png").write_bytes(b"someone's photo")
    with pytest.raises(UserError, match="another request"):
        SampleWriter(tmp_path, RECORDS).check({"torus_0": _sample().request}, 80)


def test_failing_write_leaves_the_old_sample_whole(tmp_path, monkeypatch):
    writer = SampleWriter(tmp_path, RECORDS, overwrite=True)
    folder = writer.write(_sample())
    written = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "normal.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device: free some space"):
        writer.write(_sample(seed=1))
    assert _names(tmp_path) == {"torus_0"}
    assert _names(folder) == SAMPLE_FILES
    assert json.loads((folder / "metadata.json").read_text())["seed"] == 0


def test_interrupted_replacement_is_settled_by_the_next_run(tmp_path):
    writer = SampleWriter(tmp_path, RECORDS)
    folder = writer.write(_sample())
    folder.rename(tmp_path / ".torus_0.old")  # killed between the two renames
    (tmp_path / ".torus_0.tmp").mkdir()
    writer.write(_sample())
    assert _names(tmp_path) == {"torus_0"}


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        prepare_folder(tmp_path / "file" / "below")

    def denied(*args: object, **options: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(UserError, match=r"Permission denied.*another --output"):
        prepare_folder(tmp_path)
    assert _names(tmp_path) == {"file"}


def test_full_disk_is_found_before_the_work(tmp_path):
    with pytest.raises(UserError, match=r"needs about \d+\.\d\d MB and has \d+\.\d\d MB free"):
        SampleWriter(tmp_path, RECORDS).check({"a": {}}, num_pixels=10**15)


def test_a_file_needs_folders_above_it(tmp_path):
    (tmp_path / "plain.png").write_text("")
    for name in ("plain.png/x.json", "plain.png/below/x.json"):
        with pytest.raises(UserError, match=rf"^--output .*{name}: plain.png in its path is a file: give a path"):
            prepare_file(tmp_path / name)
    prepare_file(tmp_path / "new" / "x.json")
    assert _names(tmp_path) == {"plain.png", "new"}


@pytest.mark.parametrize("name", ["dataset.json", "latents.json"])
def test_data_is_no_folder_for_samples(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="whose files would be mixed with others: choose another --output"):
        SampleWriter(tmp_path, RECORDS)
    prepare_file(tmp_path / "report.json")


def test_the_same_request_keeps_what_it_does_not_write(tmp_path, capsys):
    """A mesh of the sample; with another request, which --overwrite lets replace it, that goes and is named."""
    writer = SampleWriter(tmp_path, RECORDS, overwrite=True)
    folder = writer.write(_sample())
    (folder / "mesh.glb").write_bytes(b"mesh")
    (folder / "depth.exr").write_bytes(b"exr")
    SampleWriter(tmp_path, RECORDS).write(_sample())
    assert (folder / "mesh.glb").read_bytes() == b"mesh"
    assert (folder / "depth.exr").read_bytes() == b"exr"
    assert capsys.readouterr().out == ""
    writer.write(_sample(seed=1))
    assert _names(folder) == SAMPLE_FILES
    assert "depth.exr, mesh.glb of the other result, which was overwritten" in capsys.readouterr().err
