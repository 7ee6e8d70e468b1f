"""A typed function becomes a command: its parser, and parse errors as one line that names the nearest option."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import docstring_parser
import jsonargparse

from mmdit.bounds import RIGHT, explain, plain
from mmdit.cli.common.plain_values import (
    EMPTY_PATH,
    PARSER_MODE,
    check_config_file,
    check_options,
    expand_home,
    is_odd_number,
    sections_of,
)
from mmdit.cli.common.raw_names import hide_bytes, show_bytes
from mmdit.errors import UserError, nearest_names


class CommandParser(jsonargparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors of one line, and whose values are plain data (``plain_values``)."""

    sections: Mapping[str, bool] = {}
    _words: Sequence[str] = ()  # as they were typed
    several: Sequence[str] = ()  # options that take several words, and by default none

    def format_help(self) -> str:
        return re.sub(r"<class\s+'Path'>", "path", super().format_help())

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self._explain(message)) from ex

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """As in jsonargparse; a switch may also stand alone, ``--overwrite`` for ``--overwrite true``.

        An option that is a list of words, and by default none, may be repeated: ``--given a --given b``.

        Also names the file if a YAML file is not a mapping, and refuses null; jsonargparse does neither.
        """
        args = self._words = sys.argv[1:] if args is None else list(args)
        check_options(args, self.sections)
        self._check_numbers(args)
        args = [_expand_config(before, word) for before, word in zip(["", *args], args, strict=False)]
        for path in _config_paths(args):
            check_config_file(path, self.sections)
        completed = hide_bytes(self._complete_lists(self._complete_switches(args)))
        values = expand_home(show_bytes(super().parse_args(completed, *rest, **options)))
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if not action.option_strings and isinstance(given := values.get(action.dest), list) and "" in given:
                self.error(f"{action.metavar} is empty: give one, or leave it out")
            takes_null = hint in (None, Any) or type(None) in typing.get_args(hint) or action.dest in self.several
            if not takes_null and values.get(action.dest) is None:
                name = getattr(hint, "__name__", str(hint))
                right = f" is null: give {RIGHT[name]}" if name in RIGHT else f": expected {name}, got null"
                self.error(f"--{action.dest}{right}")
        return values

    def instantiate(self, *args: Any, **options: Any) -> Any:
        """As in jsonargparse, with Python's own numbers, the only ones that runs, files and checkpoints take."""
        values = super().instantiate(*args, **options)
        for name, value in vars(values).items():
            setattr(values, name, plain(value))
        return values

    def _check_numbers(self, args: Sequence[str]) -> None:
        """Refuse numbers that Python or YAML reads, and that are typed by mistake: 1_0, 0x10, 1:30, digits of other scripts."""
        options = self._options_of(lambda hint: any(map(_is_number, (hint, *typing.get_args(hint)))))
        for word, following in zip(args, [*args, ""][1:], strict=True):
            option, mark, value = word.partition("=")
            text = value if mark else following
            if option in options and is_odd_number(text):
                self.error(f"{option} is {text}: give a number in the digits 0 to 9, such as 10")

    def _options_of(self, fits: Callable[[Any], bool]) -> set[str]:
        """Options whose type hint ``fits``."""
        return {o for a in self._actions if fits(getattr(a, "_typehint", None)) for o in a.option_strings}

    def _complete_switches(self, args: Sequence[str]) -> list[str]:
        switches = self._options_of(lambda hint: hint is bool)
        following = [*args, ""][1:]
        return [
            f"{word}=true" if word in switches and after.lower() not in ("true", "false") else word
            for word, after in zip(args, following, strict=True)
        ]

    def _complete_lists(self, args: Sequence[str]) -> list[str]:
        """``--given a`` as ``--given+=["a"]``, which appends; a whole list in brackets, or null, stays."""
        lists = {
            option
            for action in self._actions
            if getattr(action, "_typehint", None) == list[str] | None and action.default is None
            for option in action.option_strings
            if not option.endswith("+")
        }
        done: list[str] = []
        words = iter(args)
        for word in words:
            option, mark, value = word.partition("=")
            if option not in lists:
                done.append(word)
                continue
            value = value if mark else next(words, "")
            whole = value.startswith("[") or value == "null"
            # quoted: a word such as "- a" or "#a" would be YAML of its own
            done.append(f"{option}={value}" if whole else f"{option}+={json.dumps([value], ensure_ascii=False)}")
        return done

    def option_names(self) -> list[str]:
        """All option names of this parser, without the leading dashes."""
        return [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]

    def _explain(self, message: str) -> str:
        message = " ".join(show_bytes(message).split())
        if match := re.match(r"unrecognized arguments: (.*)", message):
            return self._unknown_option(match.group(1).split()[0].split("=")[0])
        if match := re.match(r"Option '([^']+)' is not accepted", message):
            return self._unknown_option(match.group(1), "key")
        if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", message):
            return self._unknown_option(f"{match.group(1)}.{match.group(2)}", "key")
        if match := re.match(r"the following arguments are required: (.*)", message):
            missing = ", ".join(_METAVARS.get(name, f"--{name}") for name in match.group(1).split(", "))
            return f"missing {missing}; see '{self.prog} --help'"
        message = re.sub(
            r'^Parser key "([^"]+)"(?: element \d+)?: ',
            lambda key: f"{_METAVARS.get(key[1], '--' + key[1])}: ",
            message,
        )
        message = re.sub(r"^argument (--\S+?)(/\S+)?: ", r"\1: ", message)
        if EMPTY_PATH in message and (match := re.match(r"(--\S+|[A-Z_]+)\b", message)):
            return f"{match[1]} {EMPTY_PATH}"
        if match := re.match(r"(--\S+|[A-Z_]+): (Not of type .*)", message):
            message = f"{match[1]} {explain(match[2]) or match[2]}"
        message = re.sub(r"<class '([^']+)'>", r"\1", message.replace("typing.Literal", "one of "))
        return _shorten_union(message.replace("Expected a ", "expected ").replace(". Got value: ", ", got "))

    def _unknown_option(self, given: str, kind: str = "option") -> str:
        if kind == "option" and not given.startswith("-"):
            switches = self._options_of(lambda hint: hint is bool)
            if before := next(
                (a for a, b in pairwise(self._words) if a in switches and b.split("=")[0] == given), None
            ):
                return f"{before} is {given}: give true or false, or nothing"
            return f"unexpected argument {given!r}; see '{self.prog} --help'"
        known = [name for name in self.option_names() if kind == "option" or name not in _NO_KEYS]
        nearest = nearest_names(given.lstrip("-"), known, 1)[0]
        dashes = "--" if kind == "option" else ""
        return f"unknown {kind} {given!r}: did you mean {dashes + nearest!r}? '{self.prog} --help' lists them all"


def _is_number(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, int | float) and hint is not bool


def _shorten_union(message: str) -> str:
    """jsonargparse's report of a type with alternatives, in its own words for a type without."""
    match = re.match(
        r"(.*): Does not validate against any of the Union subtypes .*?Errors: - (.*) Given value type: ", message
    )
    if match is None:
        return message
    name, errors = match[1], str(match[2]).split(" - ")
    given = message.rpartition(" Given value: ")[2]
    if nested := next((error[2:] for error in errors if error.startswith("--")), None):  # --alignment.weight x
        return f"{name}.{nested}"
    if unknown := next((error for error in errors if error.startswith("unknown key ")), None):  # --lora.ranc 4
        return f"{name}: {unknown.partition('?')[0]}?"
    if right := next(filter(None, (explain(error, given) for error in errors)), None):
        return f"{name} {right}{', or null' if any('NoneType' in error for error in errors) else ''}"
    expected = [re.sub("^expected ", "", error) for error in errors]
    words = {"NoneType": "null", f"dot import path string: {given}": "keys with values"}
    return f"{name}: expected {' or '.join(words.get(word, word) for word in expected)}, got {given}"


def _expand_config(before: str, word: str) -> str:
    """``~`` of ``--config FILE`` and ``--config=FILE``; that of other values is expanded when they are parsed."""
    if before == "--config":
        return os.path.expanduser(word)
    return "--config=" + os.path.expanduser(word[9:]) if word.startswith("--config=") else word


def _config_paths(args: Sequence[str]) -> list[Path]:
    """The files of ``--config FILE`` and ``--config=FILE``."""
    following = [word for before, word in pairwise(args) if before == "--config"]
    return [
        Path(word) for word in [*following, *(a.removeprefix("--config=") for a in args if a.startswith("--config="))]
    ]


def build_parser(
    function: Callable[..., Any], prog: str, positional: Sequence[str] = (), config: bool = False
) -> CommandParser:
    """Build the parser of one command. An option that is a tuple or None takes several words.

    Args:
        function: typed, with a docstring in Google's style that describes every argument.
        prog: what the user typed before the arguments.
        positional: names of arguments that are given without an option name; a list takes one value or more, with a default
            none too.
        config: whether YAML files may be given with ``--config``, each over the ones before it.
    """
    documentation = docstring_parser.parse(inspect.getdoc(function) or "")
    text = "\n\n".join(part for part in (documentation.short_description, documentation.long_description) if part)
    parser = CommandParser(
        prog=prog,
        description=text,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        parser_mode=PARSER_MODE,
    )
    if config:
        parser.add_argument(
            "--config", action="config", help="YAML file of options; a later one overlays the earlier ones."
        )
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    hints = typing.get_type_hints(function)
    for name in positional:
        is_list = typing.get_origin(hints[name]) is list
        default = inspect.signature(function).parameters[name].default
        many = {"nargs": "+"} if default is inspect.Parameter.empty else {"nargs": "*", "default": list(default)}
        options = {"type": str, **many} if is_list else {"type": hints[name]}
        parser.add_argument(name, metavar=_METAVARS[name], help=helps[name], **options)
    parser.several = [name for name, hint in hints.items() if hint in _SEVERAL]
    for name in parser.several:
        parser.add_argument(f"--{name}", help=helps[name], **_SEVERAL[hints[name]])
    parser.add_function_arguments(function, skip={*positional, *parser.several}, fail_untyped=True)
    parser.sections = sections_of(parser)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error (or set MMDIT_DEBUG=1).")
    return parser


_SEVERAL: dict[Any, dict[str, Any]] = {  # --keep depth normal, --depth_range 0.5 8
    tuple[str, ...] | None: {"nargs": "+", "type": str, "metavar": "NAME"},
    tuple[int, ...] | None: {"nargs": "+", "type": int, "metavar": "NUMBER"},
    tuple[float, float] | None: {"nargs": 2, "type": float, "metavar": ("NEAR", "FAR")},
}
_NO_KEYS = {"help", "config", "print_config", "debug"}  # options that no YAML file takes
_METAVARS = {
    "categories": "CATEGORY",
    "image": "IMAGE",
    "images": "IMAGE_OR_DIR",
    "pictures": "IMAGE_OR_DIR_OR_VIDEO",
    "samples": "SAMPLE_FOLDER",
    "format": "FORMAT",
    "checkpoint": "CHECKPOINT",
    "results": "CSV_FILE",
}


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of the description."""
