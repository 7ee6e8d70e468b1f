from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folders(tmp_path):
    """Two images with labels 0 and 70, in rgb/ and labels/."""
    for name in ("rgb", "labels"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((8, 12, 3), 99, np.uint8)).save(tmp_path / "rgb" / f"{name}.jpg")
        Image.fromarray(np.array([[0] * 12] * 4 + [[70] * 12] * 4, np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    return ("--rgb", "rgb", "--segmentation", "labels")


def test_import_with_names_of_classes(mmdit, folders, tmp_path):
    (tmp_path / "names.txt").write_text("".join(f"thing {i}\n" for i in range(71)))
    result = mmdit("data", "import", *folders, "--output", "out", "--classes", "names.txt", "--licence", "CC0-1.0")
    assert result.code == 0
    assert "out/train: 2 samples imported" in result.out
    values = json.loads((tmp_path / "out/dataset.json").read_text())
    assert values["segmentation_classes"][70]["name"] == "thing 70"
    assert values["licence"] == "CC0-1.0"
    assert "categories" not in values
    assert mmdit("data", "check", "--data", "out").code == 0


def test_bad_files_are_listed_and_exit_with_2(mmdit, folders, tmp_path):
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "labels" / "a.png")
    result = mmdit("data", "import", *folders, "--output", "out")
    assert result.code == 2
    assert "labels/b.png: unknown labels 70 on 48 pixels; --classes names others than 0 to 63" in result.out
    assert "error: 1 problems, listed above (out/train: 1 samples imported" in result.err
    result = mmdit("data", "import", *folders, "--output", "out", "--skip_bad")
    assert result.code == 0
    assert "out/train: 1 samples imported" in result.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--classes", "none.txt"), "none.txt"),
        (("--classes", "rgb"), "rgb: is a folder; give a .json file, or a text with a name per line"),
        (("--classes", "blank.txt"), "blank.txt: has 0 lines: give a name on each"),
        (("--classes", "twice.json"), "twice.json: 'segmentation_classes' has id 1 twice"),
        (("--classes", "text.json"), "text.json"),
        (("--depth", "rgb", "--depth_values", "white"), "--depth_values"),
        (("--depth_scale", "0"), "--depth_scale is 0: give a number above 0"),
        (("--normal", "nowhere"), "--normal nowhere: no such folder"),
    ],
)
def test_wrong_options(mmdit, folders, tmp_path, arguments, expected):
    (tmp_path / "blank.txt").write_text("\n")
    classes = [{"id": 1, "name": "one", "color": [0, 0, 0]}, {"id": 1, "name": "two", "color": [0, 0, 9]}]
    (tmp_path / "twice.json").write_text(json.dumps(classes))
    (tmp_path / "text.json").write_text("chair")
    result = mmdit("data", "import", *folders, "--output", "out", *arguments)
    assert result.code == 2
    assert expected in result.error
    assert not (tmp_path / "out").exists()


def test_classes_without_labels(mmdit, folders):
    result = mmdit("data", "import", "--rgb", "rgb", "--output", "out", "--classes", "names.txt")
    assert result.code == 2
    assert "--classes names.txt: names labels, and no --segmentation is given" in result.error
