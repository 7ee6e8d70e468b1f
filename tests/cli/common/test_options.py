"""Options that commands share are parameters of each command's own."""

from __future__ import annotations

import dataclasses
import inspect

import docstring_parser
import pytest

from mmdit.bounds import PositiveInt
from mmdit.cli.common.options import refuse_idle, takes_options
from mmdit.cli.common.parsing import build_parser
from mmdit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Paint:
    """How it is painted.

    Args:
        color: Its colour,
            by name.
    """

    color: str = "red"


@dataclasses.dataclass(frozen=True)
class Brush(Paint):
    """What it is painted with.

    Args:
        width: In pixels.
    """

    width: PositiveInt = 3


@takes_options
def paint(name: str, *, brush: Brush, times: int = 1) -> list[object]:
    """Paint something.

    More of it.

    Args:
        name: What is painted.
        times: How often.
        width: In hairs.
    """
    return [name, brush, times]


def test_fields_stand_where_the_group_stood():
    assert list(inspect.signature(paint).parameters) == ["name", "color", "width", "times"]
    assert paint("wall", color="blue", times=2) == ["wall", Brush("blue", 3), 2]
    assert paint("wall", "blue") == ["wall", Brush("blue"), 1]
    with pytest.raises(TypeError, match="brush"):
        paint("wall", brush=Brush())


def test_descriptions_are_the_groups_or_the_functions_own():
    documentation = docstring_parser.parse(paint.__doc__)
    assert (documentation.short_description, documentation.long_description) == ("Paint something.", "More of it.")
    assert {each.arg_name: each.description for each in documentation.params} == {
        "name": "What is painted.",
        "color": "Its colour,\nby name.",
        "width": "In hairs.",
        "times": "How often.",
    }


def test_the_parser_reads_them_with_their_types():
    parser = build_parser(paint, "mmdit paint")
    values = parser.instantiate(parser.parse_args(["--name", "wall", "--width", "5"]))
    assert paint(**{key: value for key, value in vars(values).items() if key != "debug"}) == [
        "wall",
        Brush("red", 5),
        1,
    ]
    with pytest.raises(UserError, match="--width is 0: give at least 1"):
        parser.parse_args(["--name", "wall", "--width", "0"])


def test_idle_options_are_those_that_differ_from_their_default():
    refuse_idle(paint, {"color": "red", "times": 1}, "nothing is painted")
    with pytest.raises(UserError, match=r"^--times 2: nothing is painted, or leave it out$"):
        refuse_idle(paint, {"color": "red", "times": 2}, "nothing is painted")
