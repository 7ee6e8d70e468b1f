"""prompts.jsonl: one parser for reader and check."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.data.lines import Rules
from mmdit.data.prompts import PROMPTS, Entity, parse_prompts, read_prompts
from mmdit.errors import UserError
from mmdit.storage.json_text import BOM

GOOD = {
    "id": "000",
    "captions": ["a red torus left of a cone", "a cone"],
    "entities": [
        {
            "phrase": "red torus",
            "spans": [[2, 11], None],
            "box": [0, 1, 5, 6],
            "mask": "mask/0.png",
            "images": ["rgb/001.png"],
        },
        {"phrase": "cone", "spans": [[22, 26], [2, 6]], "box": None, "mask": None, "images": []},
    ],
}


@pytest.fixture
def dataset(make_dataset):
    root = make_dataset(num_samples=2)
    (root / "train" / "mask").mkdir()
    Image.fromarray(np.ones((16, 16), dtype=bool)).save(root / "train" / "mask" / "0.png")
    return root


def _write(root, *lines) -> Rules:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (root / "train" / PROMPTS).write_text(text)
    return Rules(root, "train", None, None)


def test_captions_and_entities(dataset):
    rules = _write(dataset, GOOD, "", {"id": 7, "captions": ["…"]})
    found = read_prompts(rules)
    assert list(found) == ["000", "7"]
    folder = dataset / "train"
    torus = Entity("red torus", ((2, 11), None), (0, 1, 5, 6), folder / "mask/0.png", (folder / "rgb/001.png",))
    assert found["000"].entities == (torus, Entity("cone", ((22, 26), (2, 6))))
    assert found["000"].captions[0][slice(*torus.spans[0])] == "red torus"
    assert found["7"].entities == ()


def test_a_split_without_prompts(dataset):
    assert read_prompts(Rules(dataset, "train", None, None)) == {}
    assert check_dataset(dataset).problems == ()


def test_good_ones_pass_the_check(dataset):
    _write(dataset, GOOD)
    assert check_dataset(dataset).problems == ()


def _with(**changes):
    return {**GOOD, "entities": [{**GOOD["entities"][0], **changes}]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "JSON"),
        ("[]", "every line is an object"),
        ({"captions": ["a"]}, "every line is an object with an 'id'"),
        ({**GOOD, "id": True}, "every line is an object with an 'id'"),
        ({**GOOD, "captions": []}, "'captions' is []"),
        ({**GOOD, "captions": ["  "]}, "'captions' is"),
        ({**GOOD, "captions": ["a \ud800 cone", "a cone"]}, "'captions' is"),
        ({**GOOD, "captions": "a cone"}, "give a list of one text or more"),
        ({**GOOD, "entities": {}}, "'entities' is {}"),
        ({**GOOD, "entities": ["cone"]}, "give an object with a 'phrase'"),
        ({**GOOD, "id": "nobody"}, "is not in the manifest"),
        (_with(spans=[[2, 11]]), "give one for each of the 2 captions"),
        (_with(spans=[[2, 99], None]), "does not fit its caption of 26 characters"),
        (
            {**_with(), "captions": ["a {ed} torus left of a cone", "a cone"]},
            "entity 'red torus': its words '{ed} toru' hold a brace, which in prompts marks what a picture stands for",
        ),
        (_with(spans=[[11, 2], None]), "does not fit"),
        (_with(spans=[[2.5, 11], None]), "does not fit"),
        (_with(box=[5, 1, 0, 6]), "give [x0, y0, x1, y1]"),
        (_with(box=[0, 1, 5]), "give [x0, y0, x1, y1]"),
        (_with(mask="mask/none.png"), "no such file"),
        (_with(mask="../../secret.png"), "leads out of the dataset"),
        (_with(images="rgb/001.png"), "give a list of paths"),
        (_with(images=[3]), "a path is a string"),
    ],
)
def test_reader_and_check_refuse_the_same(dataset, line, told):
    rules = _write(dataset, line)
    problems = check_dataset(dataset).problems
    assert len(problems) == 1
    assert told in str(problems[0])
    assert str(problems[0]).startswith("train/prompts.jsonl")
    with pytest.raises(UserError) as error:
        read_prompts(rules, {"000", "001"})
    assert told in str(error.value)


def test_one_id_twice(dataset):
    _write(dataset, GOOD, GOOD)
    assert "appears twice" in str(check_dataset(dataset).problems[0])


def test_lines_are_found_again_and_a_changed_file_is_told(dataset):
    lines = [GOOD, "", {"id": 7, "captions": ["… “é”"]}, {"id": "8", "captions": ["b" * 5000, "a\u2028b"]}]
    rules = _write(dataset, *lines)
    text = (dataset / "train" / PROMPTS).read_bytes()
    (dataset / "train" / PROMPTS).write_bytes(BOM + text)
    found = read_prompts(rules)
    assert list(found) == [GOOD["id"], "7", "8"]
    assert [found[name].captions[-1] for name in ("8", "7")] == ["a\u2028b", "… “é”"]
    assert {name: found[name] for name in found} == {s.id: s for s, _ in parse_prompts(rules) if s is not None}
    assert found.get("9") is None
    # A run goes on with the file that it began with; another process of it opens what is there now.
    other = dataset / "train" / "other.jsonl"
    other.write_bytes(b"\n" + BOM + text)
    other.replace(dataset / "train" / PROMPTS)
    assert found["7"].captions == ("… “é”",)
    elsewhere = pickle.loads(pickle.dumps(found))
    with pytest.raises(UserError, match="has changed since the start: sample '7' is not where it was"):
        elsewhere["7"]
    (dataset / "train" / PROMPTS).unlink()
    with pytest.raises(UserError, match="can't be read"):
        pickle.loads(pickle.dumps(found))["7"]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_bytes_are(dataset, seed):
    """Damaged lines are problems, never another exception."""
    random = np.random.default_rng(seed)
    text = json.dumps(GOOD).encode()
    lines = []
    for _ in range(40):
        line = bytearray(text)
        for _ in range(int(random.integers(1, 6))):
            line[int(random.integers(len(line)))] = int(random.integers(256))
        lines.append(bytes(line).replace(b"\n", b" "))
    (dataset / "train" / PROMPTS).write_bytes(b"\n".join(lines))
    check_dataset(dataset)
    try:
        read_prompts(Rules(dataset, "train", None, None))
    except UserError:
        return
