from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmdit.cli.common.showcase_prompts import Asked
from mmdit.cli.demo import EXAMPLES
from mmdit.metrics.prompts.instrument import Seen, SeenObject

# Runs its arguments in a child, and prints the child's processor seconds and most memory. A small process between: what a process
# has held before it starts another program counts as that program's, and the one that runs the tests holds much.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""


def test_demo(mmdit, tiny_pipeline_dir, tmp_path):
    result = mmdit("demo", "--model", tiny_pipeline_dir, "--num_inference_steps", 2, "--output", "demo")
    assert result.code == 0, result.err
    files = {path.name for path in (tmp_path / "demo").iterdir()}
    assert files == {"generate.png", "understand.png", "condition.png", "report.json"}
    sizes = {
        name: Image.open(tmp_path / "demo" / f"{name}.png").size for name in ("generate", "understand", "condition")
    }
    assert sizes["generate"][0] > 4 * 128  # four modalities
    assert sizes["generate"][1] > 10 * 128  # ten categories
    assert sizes["understand"][0] > 7 * 128  # input, and truth beside prediction for three
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["settings"]["num_scenes"] == 10
    assert 0 < report["understanding"]["depth"]["abs_rel"] < 1
    assert 0 < report["understanding"]["normal"]["mean_angle_objects"] < 180
    assert 0 <= report["understanding"]["segmentation"]["object_iou"] <= 1
    assert 0 < report["conditioning"]["depth"]["abs_rel"] < 1
    assert 0 <= report["generation"]["category_accuracy"] <= 1
    assert report["controls"]["shuffled_understanding"]["depth"]["abs_rel"] > 0
    assert set(report["timing"]["seconds_per_image"]) == {"generate", "understand", "condition"}
    assert f"{report['understanding']['depth']['abs_rel']:.3f}" in result.out


def test_demo_of_a_model_that_takes_prompts(mmdit, prompted_dir, tmp_path):
    result = mmdit("demo", "--model", prompted_dir, "--num_inference_steps", 1, "--output", "demo")
    assert result.code == 0, result.err
    with Image.open(tmp_path / "demo" / "prompt.png") as picture:
        assert picture.width > 5 * 128, "the subject and four modalities"
        assert picture.height > 8 * 128, "six texts and two subjects"
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    for part in (report["prompts"], report["controls"]["shuffled_prompts"]):
        for kind in ("one", "two"):
            assert 0 <= part["text"][kind]["all"] <= part["text"][kind]["present"] <= 1
    assert "shuffled_understanding" in report["controls"]
    assert "two objects: all right" in result.out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
def test_the_bundled_models_demo_is_quick_and_small(tmp_path):
    """A minute of two cores and 2 GiB; in processor time, which neighbours on the machine hardly change."""
    words = [sys.executable, "-c", MEASURED, "-m", "mmdit.cli.main", "demo", "--output", str(tmp_path / "demo")]
    child = subprocess.run(words, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    seconds, kibibytes = map(float, child.stdout.splitlines()[-1].split())
    assert seconds < 2 * 60, "of two cores"
    assert kibibytes < 2 * 2**20
    assert {"generate.png", "understand.png", "condition.png", "prompt.png"} <= {
        path.name for path in (tmp_path / "demo").iterdir()
    }


def test_what_is_asked_is_judged():
    def seen(*things):
        rows = {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.1, 0.9)}
        columns = np.arange(8) * np.ones((8, 1))
        objects = (SeenObject(name, columns == place, np.array(rows[colour])) for colour, name, place in things)
        return Seen(np.zeros((8, 8, 3), np.uint8), tuple(objects), np.zeros((8, 8), bool))

    two = Asked((("red", "torus"), ("blue", "cone")), "left")
    assert two.text == "a red torus left of a blue cone"
    right = two.judge(seen(("red", "torus", 1), ("blue", "cone", 6)))
    assert right == {"present": 1, "colour": 1, "relation": 1, "all": 1}
    assert two.judge(seen(("red", "torus", 6), ("blue", "cone", 1))) == {**right, "relation": 0, "all": 0}
    assert two.judge(seen(("blue", "torus", 1), ("blue", "cone", 6))) == {**right, "colour": 0, "all": 0}
    assert two.judge(seen(("red", "torus", 1)))["present"] == 0
    one = Asked((("blue", "cone"),))
    assert one.text == "a blue cone"
    assert one.judge(seen(("blue", "cone", 1))) == {"present": 1, "colour": 1, "relation": None, "all": 1}


def test_demo_of_a_model_of_other_words(mmdit, prompted_pipeline_dir, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "prompt.png").write_bytes(b"of an earlier run")
    result = mmdit("demo", "--model", prompted_pipeline_dir, "--num_inference_steps", 1, "--output", "demo")
    assert result.code == 0, result.err
    assert "prompt.png is left out: prompt " in result.err
    assert "doesn't know" in result.err
    assert not (tmp_path / "demo" / "prompt.png").exists()


def test_demo_refuses_data_of_other_classes(mmdit, tiny_pipeline_dir, make_dataset):
    root = make_dataset(num_samples=1, split="test")
    result = mmdit("demo", "--model", tiny_pipeline_dir, "--data", root)
    assert result.code == 2
    assert "segmentation classes are not the model's" in result.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--num_inference_steps", "0"), "num_inference_steps is 0"),
        (("--output", EXAMPLES / "dataset.json"), "is a file"),
    ],
)
def test_demo_refuses(mmdit, arguments, expected):
    result = mmdit("demo", *arguments)
    assert result.code == 2
    assert expected in result.error
