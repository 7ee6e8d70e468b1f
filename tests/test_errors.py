"""Errors that users see are one line each."""

from __future__ import annotations

import pytest

from mmdit.errors import UserError, first_line, one_line, unknown_name


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.png: the file is empty", "a.png: the file is empty"),
        (
            "w.safetensors: damaged (unknown variant `\n`, expected F32)",
            "w.safetensors: damaged (unknown variant ` `, expected F32)",
        ),
        ("\n two \r\n\n  parts\u2028three ", "two parts three"),
        (
            "Caught UserError in DataLoader worker process 0.\nTraceback …\nmmdit.errors.UserError: b.png: bad\n",
            "b.png: bad",
        ),
    ],
)
def test_a_users_error_is_one_line(message: str, shown: str) -> None:
    assert str(UserError(message)) == shown


def test_lines_of_other_errors() -> None:
    error = ValueError("the reason:\n  size mismatch\nand pages more")
    assert first_line(error) == "the reason: size mismatch"
    assert one_line(error) == "the reason: size mismatch and pages more"
    assert first_line(ValueError()) == one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 301


def test_a_name_of_an_empty_table_is_unknown() -> None:
    assert str(unknown_name("map", "depth", [])) == "unknown map 'depth': there is none to choose from"
    assert str(unknown_name("map", "dept", ["depth"])) == "unknown map 'dept': did you mean 'depth'? Known: depth"
