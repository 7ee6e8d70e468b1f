"""JSON of users is read within bounds and by type: whatever a file holds, what is wrong is one line that names it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.storage.json_files import MAX_DEPTH, JsonObject, json_safe, parse_json, read_json, write_json


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe{}", "no UTF-8 text"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested deeper than 64"),
        (b"[" * 1_000_000, "nested deeper than 64"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, content: bytes, wrong: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=wrong) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_and_the_deepest_nesting_are_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a":' * MAX_DEPTH + b'"\xc3\xbc"' + b"}" * MAX_DEPTH)
    assert "ü" in str(read_json(path))


def test_what_is_no_file_or_too_large(tmp_path: Path):
    with pytest.raises(UserError, match=r"no such file; a model folder needs it$"):
        read_json(tmp_path / "a.json", "a model folder needs it")
    with pytest.raises(UserError, match="is no regular file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="is no regular file"):  # and does not wait for a writer
        read_json(tmp_path / "fifo")
    (tmp_path / "large.json").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(UserError, match="has 109 bytes, more than the 50"):
        read_json(tmp_path / "large.json", max_bytes=50)


def _object(**values: Any) -> JsonObject:
    return parse_json(json.dumps(values), "a.json")


def test_fields_by_type():
    values = _object(text="t", whole=3, number=0.5, flag=True, names=["a", "b"], inner={"x": 1}, nothing=None)
    assert values.field("text", str) == "t"
    assert values.field("whole", int) == 3
    assert values.field("whole", float) == 3
    assert values.field("number", float) == 0.5
    assert values.field("flag", bool) is True
    assert values.list_of("names", str) == ["a", "b"]
    assert values.list_of("missing", str, []) == []
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
    with pytest.raises(UserError, match=r"^a\.json: 'key' holds 3: each is text$"):
        _object(key=["a", 3]).list_of("key", str)


def test_anything_is_read_or_refused_in_one_line():
    """Mutations of a real file: no other exception, no long line."""
    draw = random.Random(0)
    whole = json.dumps({"a": [1, {"b": None}], "c": "ü\ud800", "d": -1.5e3, "e": True}).encode()
    refused = []
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(content))
            content[at : at + draw.randint(0, 3)] = bytes(
                draw.choices(b'{}[]",:0e-ntf\\u\x00\xff', k=draw.randint(0, 4))
            )
        try:
            parse_json(bytes(content), "a.json")
        except UserError as error:
            refused.append(str(error))
    assert 500 < len(refused) < 3000
    assert max(map(len, refused)) < 500
    assert not any("\n" in text for text in refused)


def test_what_json_lacks_becomes_null(tmp_path: Path):
    values = {"a": float("nan"), "b": (np.float32(0.5), np.int64(3)), 4: [float("inf"), "\udcff"]}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [0.5, 3], "4": [None, "\udcff"]}
    assert json_safe(np.bool_(True)) is True
