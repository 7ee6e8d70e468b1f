from __future__ import annotations

import json

import pytest


def test_report(mmdit, tiny_pipeline_dir, tmp_path):
    options = ("--num_scenes", 1, "--num_frames", 3, "--batch_size", 2)
    result = mmdit("evaluate-video", "--output", "v/video.json", "--model", tiny_pipeline_dir, *options)
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "v" / "video.json").read_text())
    methods = report["video"]
    assert list(methods) == ["independent", "shared", "temporal", "truth"]
    assert methods["truth"]["depth"]["abs_rel"] == pytest.approx(0, abs=2e-2)  # the model's quantiles clip
    for name in ("depth", "normal", "segmentation"):
        assert methods["truth"][name]["flicker"] == pytest.approx(0, abs=1e-4)
        assert methods["independent"][name]["flicker"] > methods["shared"][name]["flicker"] > 0
    assert methods["temporal"]["depth"]["flicker"] < methods["shared"]["depth"]["flicker"]
    assert methods["temporal"]["depth"]["standard_error"]["flicker"] is None  # of one scene
    assert report["settings"]["num_frames"] == 3
    assert "temporal: depth flicker" in result.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--num_frames", 1), "--num_frames is 1: give at least 2"),
        (("--temporal", 1), "--temporal is 1: give a number from 0 to below 1"),
        (("--output", "."), "is a folder; --output is the report's file"),
    ],
)
def test_bad_input(mmdit, tiny_pipeline_dir, arguments, expected):
    result = mmdit("evaluate-video", "--output", "video.json", "--model", tiny_pipeline_dir, *arguments)
    assert result.code == 2
    assert expected in result.error
