from __future__ import annotations

import json

import pytest
from PIL import Image

from mmdit.cli.demo import EXAMPLES


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
        assert picture.height > 6 * 128, "four texts and two subjects"
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    for part in (report["prompts"], report["controls"]["shuffled_prompts"]):
        assert 0 <= part["text"]["two"]["all"] <= part["text"]["two"]["present"] <= 1
    assert "shuffled_understanding" in report["controls"]
    assert "two objects: both present" in result.out


def test_demo_of_a_model_of_other_words(mmdit, prompted_pipeline_dir, tmp_path):
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
