from __future__ import annotations

import pytest
from PIL import Image

from mmdit.cli.demo import EXAMPLES
from mmdit.storage.json_object import read_object


def test_diversity(mmdit, tiny_pipeline_dir, tmp_path):
    result = mmdit("diversity", "--data", EXAMPLES, "--output", "out", "--model", tiny_pipeline_dir, "--num_maps", 2,
                   "--num_images", 3, "--num_rows", 1, "--num_inference_steps", 1)  # fmt: skip
    assert result.code == 0, result.err
    assert "3 images for each of 2 maps: distance 0." in result.out
    report = read_object(tmp_path / "out/diversity.json")
    assert report["images"]["distance"] > 0
    assert report["images"]["feature_distance"] is None
    assert [len(each["abs_rel"]) for each in report["maps"]] == [3, 3]
    assert {"other_map", "real_images"} == report["controls"].keys()
    assert report["settings"]["num_images"] == 3
    assert Image.open(tmp_path / "out/diversity.png").width > 4 * 128


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--num_images", 1), "--num_images is 1: give at least 2"),
        (("--condition", "rgb"), "unknown --condition 'rgb': did you mean"),
    ],
)
def test_what_is_refused(mmdit, tiny_pipeline_dir, arguments, expected):
    result = mmdit("diversity", "--data", EXAMPLES, "--output", "out", "--model", tiny_pipeline_dir, *arguments)
    assert result.code == 2
    assert expected in result.error
