import os

import pytest

from mmdit.errors import UserError
from mmdit.storage.json_text import parse_json, quoted, read_json


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON: empty"),
        (b"{", "not JSON: Expecting"),
        (b"\xff\xfe{\0}\0", "not UTF-8 text"),
        (b"[NaN]", "NaN is not a number in JSON"),
        (b"[-1e999]", "-1e999 is too large for a number"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b"[" * 200_000 + b"]" * 200_000, "nested more than 64 deep"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_refused_has_a_reason_of_one_line(content, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_unusual_line_ends_are_text():
    assert parse_json(b'\xef\xbb\xbf{"a": "x"}') == {"a": "x"}
    assert parse_json('{"a": "x\u2028y\u0085z"}'.encode()) == {"a": "x\u2028y\u0085z"}
    assert parse_json(b"[" * 64 + b"]" * 64)


def test_only_files_within_the_limit_are_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file; make it"):
        read_json(tmp_path / "none.json", advice="make it")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a FIFO, not a file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)
    (tmp_path / "big.json").write_bytes(b" " * 101)
    with pytest.raises(UserError, match="has 101 bytes, at most 100 are read"):
        read_json(tmp_path / "big.json", max_bytes=100)
    (tmp_path / "bad.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"bad\.json: not readable as JSON: not JSON: .*; make it$"):
        read_json(tmp_path / "bad.json", advice="make it")


def test_values_are_quoted_on_one_short_line():
    assert quoted("a\nb") == "'a\\nb'"
    assert len(quoted("x" * 10**6)) < 90
    assert quoted(list(range(1000))) == "a list of 1000 entries"
