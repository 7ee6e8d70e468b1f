"""Miniatures of the public layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.prompts.benchmarks import find_benchmark
from mmdit.prompt import parse

LIST = """Classes

subject_name,class
backpack,backpack
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} on the beach'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token)
]
"""


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def dreambench(tmp_path):
    root = tmp_path / "dreambooth"
    for seed, name in enumerate(("backpack/00.png", "backpack/01.png", "cat2/00.png", "cat2/01.png", "cat2/02.png")):
        picture(root / "dataset" / name, seed)
    (root / "dataset" / "prompts_and_classes.txt").write_text(LIST)
    return root


@pytest.fixture
def multibench(dreambench):
    root = dreambench / "dataset"
    lines = [{"prompt": "a {cat} and a {backpack}", "subjects": {"backpack": "backpack", "cat": "cat2"}}]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    captions = [{"image_id": i, "caption": f" a {colour} cat\n"} for i, colour in enumerate(("red", "blue", "green"))]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "captions_val2014.json").write_text(json.dumps({"annotations": captions}))
    for seed in range(3):
        picture(root / "val2014" / f"{seed}.jpg", seed, (40, 60))
    return root


def test_dreambench(dreambench):
    benchmark = find_benchmark("dreambench")
    prompts = benchmark.prompts(dreambench, 0)
    assert [(each.id, each.template, each.text) for each in prompts] == [
        ("backpack_00", "a {backpack} on the beach", "a backpack on the beach"),
        ("backpack_01", "a red {backpack}", "a red backpack"),
        ("cat2_00", "a {cat} in the snow", "a cat in the snow"),
    ]
    assert [path.name for path in prompts[2].subjects[0]] == ["00.png", "01.png", "02.png"]
    assert benchmark.prompts(dreambench / "dataset", 0) == prompts
    assert (benchmark.images_per_prompt, benchmark.real_images(dreambench)) == (4, [])


def test_multibench(multibench):
    (prompt,) = find_benchmark("multibench").prompts(multibench, 0)
    assert prompt.template == "a {cat} and a {backpack}"
    assert [paths[0].parent.name for paths in prompt.subjects] == ["cat2", "backpack"], "in the order of the braces"


def test_coco30k(coco):
    benchmark = find_benchmark("coco30k")
    prompts = benchmark.prompts(coco, 0)
    assert sorted(each.text for each in prompts) == ["a blue cat", "a green cat", "a red cat"]
    assert all(parse(each.template).text == each.text and each.subjects == () for each in prompts)
    assert benchmark.prompts(coco, 0) == prompts
    orders = {tuple(each.text for each in benchmark.prompts(coco, seed)) for seed in range(8)}
    assert len(orders) > 1
    assert [path.name for path in benchmark.real_images(coco)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_refusals(tmp_path, dreambench, multibench, coco):
    with pytest.raises(UserError, match="unknown benchmark 'dreambnch': did you mean 'dreambench'"):
        find_benchmark("dreambnch")
    with pytest.raises(UserError, match=r"prompts_and_classes\.txt: no such file"):
        find_benchmark("dreambench").prompts(tmp_path, 0)
    with pytest.raises(UserError, match=r"prompts\.jsonl: no such file; its lines are"):
        find_benchmark("multibench").prompts(tmp_path, 0)
    with pytest.raises(UserError, match=r"captions_val2014\.json: no such file"):
        find_benchmark("coco30k").prompts(tmp_path, 0)
    with pytest.raises(UserError, match="val2014: no such folder"):
        find_benchmark("coco30k").real_images(tmp_path)
    (coco / "annotations" / "captions_val2014.json").write_text('{"annotations": [{"caption": 3}]}')
    with pytest.raises(UserError, match="give objects with a 'caption'"):
        find_benchmark("coco30k").prompts(coco, 0)
    listed = dreambench / "dataset" / "prompts_and_classes.txt"
    listed.write_text("nothing")
    with pytest.raises(UserError, match="lists 0 subjects, 0 prompts for objects"):
        find_benchmark("dreambench").prompts(dreambench, 0)
    listed.write_text(LIST.replace("backpack,backpack", "teapot,teapot"))
    with pytest.raises(UserError, match="teapot: no such folder; it holds the pictures of"):
        find_benchmark("dreambench").prompts(dreambench, 0)
    listed.write_text(LIST.replace("backpack,backpack", "../x,backpack"))
    with pytest.raises(UserError, match="is outside"):
        find_benchmark("dreambench").prompts(dreambench, 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[1]", "give an object with 'prompt'"),
        ('{"prompt": "a {cat}", "subjects": {"cat": 3}}', "give an object with 'prompt'"),
        ('{"prompt": "a cat", "subjects": {}}', "marks no subject"),
        ('{"prompt": "a {cat}", "subjects": {}}', r"\{cat\} in the prompt has no image"),
        ('{"prompt": "a {cat}", "subjects": {"cat": "nowhere"}}', "nowhere: no such folder"),
        ("{", "line 1"),
        ("", "holds no prompt"),
    ],
)
def test_bad_lines_of_multibench(multibench, line, expected):
    (multibench / "prompts.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=expected):
        find_benchmark("multibench").prompts(multibench, 0)
