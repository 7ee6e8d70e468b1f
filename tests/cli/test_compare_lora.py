from __future__ import annotations

import json

import pytest
from PIL import Image

from mmdit.cli.demo import EXAMPLES
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

WAYS = ("words", "picture", "lora", "real_images", "copied_references")


def test_a_subject_by_its_picture_and_by_a_lora(mmdit, prompt_scenes, prompted_dir, tmp_path):
    result = mmdit("compare-lora", "--data", prompt_scenes, "--output", "out", "--model", prompted_dir, "--num_images", 3,
                   "--max_steps", 2, "--rank", 2, "--learning_rate", 0.5, "--num_inference_steps", 1,
                   "--batch_size", 2)  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {way: report[way]["num_samples"] for way in WAYS} == dict(zip(WAYS, (3, 3, 3, 1, 1), strict=True))
    assert [way for way in WAYS if report[way]["seconds"] > 0] == ["lora"]
    assert report["copied_references"]["nearest"] == 0.0
    assert report["real_images"]["category"] == 1.0
    for way in WAYS:
        assert {"category", "colour", "distance", "nearest", "standard_error"} <= report[way].keys()
    assert report["lora"]["distance"] != report["words"]["distance"], "the same noise and words, other weights"
    assert report["settings"]["num_pictures"] == [5]
    assert Image.open(tmp_path / "out" / "pictures.png").width > 300
    pipe = MultimodalDiTPipeline.from_pretrained(prompted_dir)
    pipe.load_lora_weights(tmp_path / "out" / "subject_0" / "run" / "lora")
    again = mmdit("compare-lora", "--data", prompt_scenes, "--output", "out", "--model", prompted_dir)
    assert again.code == 2
    assert "--output out: is there already; give a new folder" in again.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--data", EXAMPLES), "has no prompts.jsonl"),
    ],
)
def test_what_is_refused(mmdit, arguments, expected, prompted_dir):
    result = mmdit("compare-lora", *arguments, "--output", "out", "--model", prompted_dir)
    assert result.code == 2
    assert expected in result.error


def test_a_model_without_subjects_is_refused(mmdit, tiny_pipeline_dir, prompt_scenes):
    result = mmdit("compare-lora", "--data", prompt_scenes, "--output", "out", "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "takes no subjects by their pictures" in result.error
