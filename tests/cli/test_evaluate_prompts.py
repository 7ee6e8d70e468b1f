from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mmdit.cli.demo import EXAMPLES


@pytest.fixture
def multibench(tmp_path):
    root = tmp_path / "bench"
    for name in ("cat2", "clock"):
        for copy in range(2):
            (root / name).mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng([len(name), copy]).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(values).save(root / name / f"{copy}.png")
    lines = [
        {"prompt": "a {cat} and a {clock}", "subjects": {"cat": "cat2", "clock": "clock"}},
        {"prompt": "a red {clock}", "subjects": {"clock": "clock"}},
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_evaluate_prompts_goes_on_where_it_was_stopped(
    mmdit, multibench, prompted_dir, clip_folder, dino_folder, tmp_path
):
    command = ("evaluate-prompts", "--benchmark", "multibench", "--data", multibench, "--output", "out/r.json", "--model",
               prompted_dir, "--clip", clip_folder, "--dino", dino_folder, "--images_per_prompt", 2,
               "--num_inference_steps", 1, "--guidance_scale", 2, "--batch_size", 3)  # fmt: skip
    result = mmdit(*command)
    assert result.code == 0, result.err
    assert "clip_t " in result.out
    report = json.loads((tmp_path / "out" / "r.json").read_text())
    assert report["measures"].keys() >= {"dino", "clip_i", "clip_t", "standard_error"}
    assert report["controls"].keys() == {"real_images", "copied_references"}
    assert report["settings"]["num_prompts"] == 2
    pictures = sorted((tmp_path / "out" / "r_images").glob("*.png"))
    assert [path.name for path in pictures] == ["0001_0.png", "0001_1.png", "0002_0.png", "0002_1.png"]
    kept = pictures[0].stat().st_mtime_ns
    pictures[3].unlink()
    assert mmdit(*command).code == 0
    again = json.loads((tmp_path / "out" / "r.json").read_text())
    assert again["measures"]["dino"] == pytest.approx(report["measures"]["dino"], abs=1e-3)
    assert pictures[0].stat().st_mtime_ns == kept
    result = mmdit(*command, "--seed", 1)
    assert result.code == 2
    assert "seed was 0, now 1" in result.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--benchmark", "dreambench", "--data", "nowhere"), "--data nowhere: no such folder"),
        (("--benchmark", "dreambnch", "--data", EXAMPLES), "unknown benchmark 'dreambnch': did you mean 'dreambench'"),
        (("--benchmark", "dreambench", "--data", EXAMPLES), "prompts_and_classes.txt: no such file"),
        (("--benchmark", "coco30k", "--data", EXAMPLES), "captions_val2014.json: no such file"),
        (("--benchmark", "multibench", "--data", "bench", "--clip", "nowhere"), "CLIP model 'nowhere' can't be loaded"),
        (("--benchmark", "multibench", "--data", "bench", "--clip", "null", "--dino", "nowhere"), "DINO model 'nowhere'"),
    ],
)  # fmt: skip
def test_evaluate_prompts_refuses(mmdit, multibench, arguments, expected):
    result = mmdit("evaluate-prompts", *arguments, "--output", "r.json")
    assert result.code == 2
    assert expected in result.error


def test_a_model_without_prompts_is_refused(mmdit, multibench, tiny_pipeline_dir):
    result = mmdit("evaluate-prompts", "--benchmark", "multibench", "--data", multibench, "--output", "r.json", "--model",
                   tiny_pipeline_dir, "--clip", "null", "--dino", "null")  # fmt: skip
    assert result.code == 2
    assert "takes no prompts" in result.error
