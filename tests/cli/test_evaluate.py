from __future__ import annotations

import json

import pytest

from mmdit.cli.demo import EXAMPLES
from mmdit.storage.json_object import flatten


def test_evaluate(mmdit, tiny_pipeline_dir, tmp_path):
    result = mmdit("evaluate", "--data", EXAMPLES, "--output", "reports/r.json", "--model", tiny_pipeline_dir,
                   "--num_samples", 2, "--num_inference_steps", 1)  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "reports" / "r.json").read_text())
    settings = report["settings"]
    assert (settings["model"], settings["split"], settings["num_samples"]) == (str(tiny_pipeline_dir), "test", 2)
    assert {"num_inference_steps", "guidance_scale", "seed", "versions"} <= settings.keys()
    flat = flatten(report)
    for key in (
        "understanding.depth.abs_rel",
        "understanding.normal.mean_angle_objects",
        "understanding.segmentation.object_iou",
        "conditioning.depth.abs_rel",
        "generation.category_accuracy",
        "generation.consistency.depth_normal_angle",
        "controls.shuffled_understanding.depth.abs_rel",
        "controls.vae_only.depth.abs_rel",
    ):
        assert key in flat
    assert "understanding.depth.abs_rel" in result.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere", "--output", "r.json"), "--data nowhere: no such folder"),
        (("--data", EXAMPLES, "--output", "."), "is a folder"),
        (("--data", EXAMPLES, "--output", "r.json", "--num_samples", "0"), "--num_samples is 0"),
        (("--data", EXAMPLES, "--output", "r.json", "--num_inference_steps", "0"), "--num_inference_steps is 0"),
        (("--data", EXAMPLES), "missing --output"),
    ],
)
def test_evaluate_refuses(mmdit, arguments, expected):
    result = mmdit("evaluate", *arguments)
    assert result.code == 2
    assert expected in result.error


def test_evaluate_unknown_split(mmdit, tiny_pipeline_dir):
    result = mmdit(
        "evaluate", "--data", EXAMPLES, "--output", "r.json", "--split", "tset", "--model", tiny_pipeline_dir
    )
    assert result.code == 2
    assert "tset" in result.error
