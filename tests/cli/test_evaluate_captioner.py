from __future__ import annotations

import json

import pytest
from tiny_multimodal import save_captioner_of_captions

from mmdit.data.instructions import Instructions
from mmdit.sources.scenes.questions import questions


@pytest.fixture(scope="module")
def captioner(prompt_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner") / "captioner"
    save_captioner_of_captions(folder, Instructions(prompt_folders.data, "train", questions, seed=0).texts)
    return folder


def test_report(mmdit, captioner, prompt_folders, tmp_path):
    options = ("--data", prompt_folders.data, "--split", "train", "--num_samples", 3)
    result = mmdit("evaluate-captioner", "--model", captioner, *options, "--output", "c/captioner.json")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "c" / "captioner.json").read_text())
    assert report["captioner"]["caption.categories"]["count"] == 3
    assert set(report["controls"]["shuffled"]) == set(report["captioner"])
    assert report["settings"]["split"] == "train"
    assert "with another's picture" in result.out


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--model": "nowhere"}, "captioner 'nowhere' can't be loaded: no such folder"),
        ({"--model": "clip"}, "is no captioner of recipe 'captioner'"),
        ({"--data": "nowhere"}, "nowhere: no such dataset folder"),
        ({"--split": "other"}, "other"),
        ({"--num_samples": 1}, "num_samples is 1: give at least 2"),
        ({"--output": "."}, "is a folder; --output is the report's file"),
    ],
)
def test_bad_input(mmdit, captioner, prompt_folders, changes, expected):
    given = {"--model": captioner, "--data": prompt_folders.data, "--split": "train", "--output": "c.json"} | changes
    given["--model"] = prompt_folders.clip if given["--model"] == "clip" else given["--model"]
    result = mmdit("evaluate-captioner", *(word for pair in given.items() for word in pair))
    assert result.code == 2
    assert expected in result.error
