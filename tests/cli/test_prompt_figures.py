from __future__ import annotations

import csv

import pytest
from PIL import Image

from mmdit.cli.demo import EXAMPLES


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_prompt_figures(mmdit, prompt_scenes, prompted_dir, tmp_path):
    result = mmdit("prompt-figures", "--data", prompt_scenes, "--output", "figures", "--model", prompted_dir, "--num_prompts", 2,
                   "--num_rows", 2, "--fusing_scales", "[0,1]", "--num_inference_steps", 1)  # fmt: skip
    assert result.code == 0, result.err
    rows = read(tmp_path / "figures" / "fusing.csv")
    assert [row["fusing_scale"] for row in rows] == ["0", "1"]
    assert {"text", "subject", "distance", "text_error", "num_samples"} <= rows[0].keys()
    words = read(tmp_path / "figures" / "pseudo_words.csv")
    assert len({row["category"] for row in words}) <= 4
    assert len({(row["x"], row["y"]) for row in words}) == len(words) >= 4
    for name in ("fusing.png", "fusing_pictures.png", "grounds.png", "pseudo_words.png"):
        assert Image.open(tmp_path / "figures" / name).width > 300


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--data", EXAMPLES, "--fusing_scales", "[2]"), "--fusing_scales are [2.0]: give numbers from 0 to 1"),
    ],
)
def test_prompt_figures_refuses(mmdit, arguments, expected):
    result = mmdit("prompt-figures", *arguments, "--output", "figures")
    assert result.code == 2
    assert expected in result.error


def test_a_model_or_split_without_prompts_is_refused(mmdit, tiny_pipeline_dir, prompted_dir):
    result = mmdit("prompt-figures", "--data", EXAMPLES, "--output", "figures", "--model", tiny_pipeline_dir)
    assert "does not fuse text and subjects" in result.error
    result = mmdit("prompt-figures", "--data", EXAMPLES, "--output", "figures", "--model", prompted_dir)
    assert "has no prompts.jsonl" in result.error
