"""Values of JSON files are read by type: what is wrong is one line that names the file, the name and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.storage.json_object import JsonObject, json_safe, read_object, write_json


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "holds a JSON list, not an object; encode again"),
        ("null", "holds a JSON NoneType, not an object; encode again"),
    ],
)
def test_files_that_hold_no_object(tmp_path: Path, content: str, wrong: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path / 'a.json'}: {wrong}"):
        read_object(tmp_path / "a.json", "encode again")


def _object(**values: Any) -> JsonObject:
    return JsonObject(values, "a.json")


def test_fields_by_type():
    values = _object(text="t", whole=3, number=0.5, flag=True, names=["a", "b"], inner={"x": 1}, nothing=None)
    assert values.field("text", str) == "t"
    assert values.field("whole", int) == 3
    assert values.field("whole", float) == 3
    assert values.field("number", float) == 0.5
    assert values.field("flag", bool) is True
    assert values.field("names", list) == ["a", "b"]
    assert values.field("missing", int, 7) == 7
    assert values.field("nothing", str, None) is None


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        ("3", int, "a whole number"),
        (3.5, int, "a whole number"),
        (True, int, "a whole number"),
        (False, float, "a number"),
        (float("inf"), float, "a number"),
        (3, str, "text"),
        (1, bool, "true or false"),
        ({}, list, "a list"),
        ([], dict, "an object"),
        ("x" * 1000, dict, "an object"),
    ],
)
def test_fields_of_another_type(value: Any, kind: type, right: str):
    with pytest.raises(UserError, match=rf"^a\.json: 'key' is .*: give {right}$") as caught:
        _object(key=value).field("key", kind)
    assert len(str(caught.value)) < 200


def test_missing_fields_and_places_inside_others_are_named():
    with pytest.raises(UserError, match=r"^a\.json: lacks 'key', text$"):
        _object(key=None).field("key", str)
    inner = _object(outer={"key": []}).object("outer")
    with pytest.raises(UserError, match=r"^a\.json, 'outer': 'key' is \[\]: give a whole number$"):
        inner.field("key", int)
    assert _object().object("key", {}) == {}


def test_what_json_lacks_becomes_null(tmp_path: Path):
    values = {"a": float("nan"), "b": (np.float32(0.5), np.int64(3)), 4: [float("inf"), "\udcff"]}
    write_json(tmp_path / "a.json", values)
    assert read_object(tmp_path / "a.json") == {"a": None, "b": [0.5, 3], "4": [None, "\udcff"]}
    assert json_safe(np.bool_(True)) is True
