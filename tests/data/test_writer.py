import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmdit.data.writer import DatasetWriter, read_description
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec
from mmdit.modalities.palette import class_palette, generic_palette


def test_files_hold_what_was_saved(tmp_path):
    writer = DatasetWriter(tmp_path, "train", depth_scale=0.01)
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(5, 6, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    arrays = {
        "rgb": rng.integers(0, 256, (5, 6, 3), dtype=np.uint8),
        "depth": rng.uniform(1, 600, (5, 6)),
        "normal": normals,
        "segmentation": rng.integers(0, 40000, (5, 6)),
    }
    for name, array in arrays.items():
        writer.save(name, "a/b", array)
    read = {
        n: build_codec(MODALITIES[n]).read(tmp_path / f"train/{n}/a/b.png", {"depth_scale": 0.01}).values
        for n in arrays
    }
    np.testing.assert_array_equal(read["rgb"], arrays["rgb"])
    np.testing.assert_array_equal(read["segmentation"], arrays["segmentation"])
    np.testing.assert_allclose(read["depth"], arrays["depth"], atol=0.0051)
    np.testing.assert_allclose(read["normal"], arrays["normal"], atol=1 / 255 + 1e-6)


def test_depth_that_does_not_fit_is_invalid(tmp_path):
    writer = DatasetWriter(tmp_path, "train", depth_scale=0.001)
    writer.save("depth", "x", np.array([[np.nan, np.inf, -1.0, 0.0], [65.535, 65.6, 0.0004, 0.001]]))
    units = np.asarray(Image.open(tmp_path / "train/depth/x.png"))
    assert units.tolist() == [[0, 0, 0, 0], [65535, 0, 0, 1]]


def test_manifest_lists_what_is_there(tmp_path):
    writer = DatasetWriter(tmp_path, "train")
    for sample_id in ("n01/a", "b", "c"):
        writer.save("rgb", sample_id, np.zeros((2, 2, 3), np.uint8))
    writer.save("depth", "b", np.ones((2, 2)))
    writer.save("depth", "d", np.ones((2, 2)))  # no RGB: no sample
    (tmp_path / "train/rgb/.e.png.tmp").write_bytes(b"half")
    assert writer.existing("rgb") == {"n01/a", "b", "c"}
    writer.save("rgb", "e", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "train/rgb/f.png").write_bytes(b"")
    cut = tmp_path / "train/rgb/e.png"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert writer.existing("rgb") == {"n01/a", "b", "c"}
    rows = [("n01/a", "n01"), ("b", None), ("c", None), ("d", None), ("e", None)]
    assert writer.write_manifest(rows, ["rgb", "depth"]) == 3
    lines = [json.loads(line) for line in (tmp_path / "train/manifest.jsonl").read_text().splitlines()]
    assert lines == [
        {"id": "n01/a", "category": "n01", "rgb": "rgb/n01/a.png"},
        {"id": "b", "rgb": "rgb/b.png", "depth": "depth/b.png"},
        {"id": "c", "rgb": "rgb/c.png"},
    ]


def test_palette_has_as_many_colours_as_wanted():
    np.testing.assert_array_equal(class_palette(64), generic_palette(64))
    for count in (1, 65, 150, 217):
        colors = class_palette(count)
        assert colors.shape == (count, 3)
        assert len(np.unique(colors, axis=0)) == count


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(UserError, match="split 'a/b'"):
        DatasetWriter(tmp_path, "a/b")
    assert read_description(tmp_path) is None
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json: not readable"):
        read_description(tmp_path)
    (tmp_path / "dataset.json").write_text('{"modalities": ["rgb"], "provenance": "mine"}')
    with pytest.raises(UserError, match="nothing of its provenance"):
        read_description(tmp_path)


def test_a_full_disk_names_the_path(tmp_path):
    """Rendering and labelling write through this; the limit on a file's size stands in for the disk's."""
    code = """
import resource, sys
import numpy as np
from mmdit.cli.main import explain
from mmdit.data.writer import DatasetWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
writer = DatasetWriter(sys.argv[1], "train")
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
rows = ((f"{i:05d}", None, {"rgb": f"rgb/{i:05d}.png"}) for i in range(999))
for call in (lambda: writer.save("rgb", "a", noise), lambda: writer.write_rows(rows)):
    try:
        call()
    except Exception as error:
        print(*explain(error))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"2 {tmp_path}/train/rgb/a.png: File too large")
    assert second.startswith(f"2 {tmp_path}/train/manifest.jsonl: File too large")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_that_are_no_utf8_or_no_folder_name_of_a_split(tmp_path):
    writer = DatasetWriter(tmp_path, "été")
    writer.save("rgb", "caf%E9/名", np.zeros((2, 2, 3), np.uint8))
    assert writer.existing("rgb") == {"caf%E9/名"}
    for split in ("", "a/b", "..", "x" * 300):
        with pytest.raises(UserError, match="must be a folder name of letters"):
            DatasetWriter(tmp_path, split)
