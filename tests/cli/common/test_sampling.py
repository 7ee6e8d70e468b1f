"""Requests of many samples cost nothing before they are made, and what is there is compared with them."""

from __future__ import annotations

import json
import re
import time
from itertools import islice

import pytest

from mmdit.cli.common.sampling import NumberedRequests


def make(stem: str, seed: int) -> dict[str, object]:
    return {"stem": stem, "seed": seed}


def test_names_are_in_order_and_made_on_demand():
    requests = NumberedRequests([("a", range(5, 7)), ("b_1", range(5, 6)), ("a", range(7, 8))], make)
    assert list(requests) == ["a_5", "a_6", "b_1_5", "a_7"]
    assert len(requests) == 4
    assert requests["b_1_5"] == {"stem": "b_1", "seed": 5}
    assert requests["a_7"]["seed"] == 7
    for name in ("a_4", "a_8", "a_05", "a_-5", "a_", "a", "b_5", "a_５", ".a_5.tmp"):
        assert requests.get(name) is None


def test_ten_million_start_at_once():
    before = time.perf_counter()
    requests = NumberedRequests([("a", range(10_000_000))], make)
    assert len(requests) == 10_000_000
    assert list(islice(requests, 2)) == ["a_0", "a_1"]
    assert requests["a_9999999"]["seed"] == 9_999_999
    assert time.perf_counter() - before < 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--num_images", 10**9), "--num_images makes 1000000000 images: give at most 10000000 to one command"),
        (("--num_inference_steps", 10**9), "--num_inference_steps is 1000000000: give 1 to 10000"),
        (("--batch_size", 0), "--batch_size is 0: give 1 to"),
        (("--batch_size", 10**9), "--batch_size is 1000000000: give 1 to"),
    ],
)
def test_counts_that_can_not_be_meant_are_refused_at_once(mmdit, arguments, expected):
    result = mmdit("generate", "torus", *arguments)
    assert result.code == 2
    assert expected in result.error


def test_batches_and_what_is_there(mmdit, tiny_pipeline_dir, tmp_path):
    common = ("generate", "torus", "--model", tiny_pipeline_dir, "--num_inference_steps", 1, "--output", "o")
    first = mmdit(*common, "--num_images", 3, "--batch_size", 2)
    assert first.code == 0, first.err
    assert first.out.split() == ["o/torus_0", "o/torus_1", "o/torus_2"]
    line = r"^\d\d:\d\d:\d\d generate: 100% 3/3 images, .*, 0:\d\d passed$"  # no terminal here
    assert re.search(line, first.err, flags=re.MULTILINE)
    assert "\r" not in first.err
    metadata = json.loads((tmp_path / "o/torus_2/metadata.json").read_text())
    assert (metadata["seed"], metadata["category"]) == (2, "torus")
    other = mmdit(*common, "--num_images", 3, "--guidance_scale", 3)
    assert other.code == 2
    assert "holds a result of another request (guidance_scale was 2.0, now 3.0)" in other.error


def test_understanding_a_folder_shows_progress(mmdit, tiny_pipeline_dir, photo, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.png").write_bytes(photo.read_bytes())
    result = mmdit("understand", "in", "--model", tiny_pipeline_dir, "--output", "o", "--batch_size", 2)
    assert result.code == 0, result.err
    assert re.search(r"understand: 100% 3/3 images", result.err)


def test_categories_whose_names_become_one_file_name(mmdit, tiny_pipeline_dir, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_pipeline_dir, model)
    index = json.loads((model / "model_index.json").read_text())
    index["id2label"] |= {"0": "a/b", "1": "a b"}
    (model / "model_index.json").write_text(json.dumps(index))
    result = mmdit("generate", "a/b", "a b", "2", "--model", model, "--num_inference_steps", 1, "--output", "o")
    assert result.code == 0, result.err
    assert result.out.split()[:2] == ["o/a_b_0_0", "o/a_b_1_0"]
    found = [json.loads((tmp_path / f"o/a_b_{i}_0/metadata.json").read_text())["category"] for i in (0, 1)]
    assert found == ["a/b", "a b"]
