"""What options and YAML files may say: values, and never code. Checked before the parser sees them.

jsonargparse would take ``class_path`` in any section, import what it names, and open files that a section's value names.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader
from jsonargparse.typing import register_type

from mmdit.errors import UserError
from mmdit.storage.yaml_text import check_yaml, load_yaml, read_yaml

PARSER_MODE = "mmdit_yaml"
EMPTY_PATH = "is empty: give a path, . for the current folder"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?\.?(inf|infinity|nan)", re.IGNORECASE)
_CLASS_KEYS = frozenset({"class_path", "init_args", "dict_kwargs"})
_FILE_KEYS = frozenset({"config", "print_config", "help", "$schema", "__path__"})


def sections_of(parser: ArgumentParser) -> dict[str, bool]:
    """Dotted names of a parser's arguments that are dataclasses -> whether null is allowed instead."""
    found: dict[str, bool] = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None) or getattr(action, "basetype", None)
        alternatives = [hint, *typing.get_args(hint)]
        is_help = action.dest.rpartition(".")[2] == "help"
        if not is_help and any(isinstance(each, type) and dataclasses.is_dataclass(each) for each in alternatives):
            found[action.dest] = type(None) in alternatives
    return found


def check_config_file(path: Path, sections: Mapping[str, bool]) -> None:
    """Check a file of ``--config``. Raises UserError: missing, not plain YAML, or with a key or section of another kind."""
    if not path.exists():
        raise UserError(f"--config {path}: no such file")
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if not isinstance(values, dict):
        kind = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"--config {path}: holds {kind}; give keys with values, such as 'seed: 0'")
    _check_values(values, sections, f"--config {path}: ")


def _check_values(values: Any, sections: Mapping[str, bool], where: str) -> None:
    pending: list[tuple[str, Any]] = [("", values)]
    while pending:
        prefix, value = pending.pop()
        if prefix in sections and not isinstance(value, dict) and not (value is None and sections[prefix]):
            raise UserError(f"{where}{prefix} is {value!r}, but a section: give its keys with values")
        if isinstance(value, dict):
            for key, inner in value.items():
                _check_key(key, where)
                pending.append((f"{prefix}.{key}" if prefix else key, inner))
        elif isinstance(value, list):
            pending += [(f"{prefix}[{index}]", inner) for index, inner in enumerate(value)]


def _check_key(key: Any, where: str) -> None:
    if not isinstance(key, str):
        raise UserError(f"{where}key {key!r} is a {type(key).__name__}; keys are names")
    for part in key.split("."):
        if part in _CLASS_KEYS:
            raise UserError(f"{where}key {key!r} would name code to import, which nothing here may: give values alone")
        if part in _FILE_KEYS:
            raise UserError(f"{where}key {key!r} is an option of the command line: give it there, --{part}")


def check_options(words: Sequence[str], sections: Mapping[str, bool]) -> None:
    """Check options as they were typed. Raises UserError for one that names code, or sets a section to something else."""
    for word, following in zip(words, [*words, None][1:], strict=True):
        if not word.startswith("--"):
            continue
        name, equals, given = word[2:].partition("=")
        parts = name.rstrip("+").split(".")
        if _CLASS_KEYS & set(parts):
            raise UserError(f"--{name} would name code to import, which no option may: give the section's own keys")
        if len(parts) > 1 and _FILE_KEYS & set(parts):
            raise UserError(f"unknown option '--{name}'")
        key = ".".join(parts)
        text = given if equals else following
        if key in sections and text is not None:
            _check_section(key, text, sections)


def _check_section(key: str, text: str, sections: Mapping[str, bool]) -> None:
    expected = "keys with values or null" if sections[key] else "keys with values"
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{key}: expected {expected}, got {text!r}: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict) and not (value is None and sections[key]):
        raise UserError(f"--{key}: expected {expected}, got {text}")
    inner = {name[len(key) + 1 :]: null for name, null in sections.items() if name.startswith(f"{key}.")}
    _check_values(value, inner, f"--{key}: ")


def is_odd_number(text: str) -> bool:
    """Whether Python or YAML reads a text as a number that is not written in ASCII digits, with a sign, point and exponent."""
    if _NUMBER.fullmatch(text.strip()):
        return False
    try:
        return isinstance(float(text), float)
    except ValueError:
        pass
    try:
        value = load_yaml(text)
    except (yaml.YAMLError, ValueError, OverflowError, UserError):
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _load(text: str) -> Any:
    check_yaml(text)
    value = get_loader("yaml")(text)
    if isinstance(value, dict | list):
        _check_values(value, {}, "")
    return value


set_loader(PARSER_MODE, _load, (yaml.YAMLError, ValueError, OverflowError))


def _as_path(text: Any) -> Path:
    """A path of an option; Python would take no text, such as an unset variable, for the current folder."""
    if text == "":
        raise ValueError(EMPTY_PATH)
    return Path(text)


register_type(Path, str, _as_path, type_check=isinstance)


def expand_home(values: Any) -> Any:
    """Replace a leading ``~`` in every path and text of parsed values: here, once, for options and YAML alike.

    Some libraries expand it and some don't, so one run would use two folders.
    """
    if isinstance(values, Namespace):
        for key, value in vars(values).items():
            values[key] = expand_home(value)
        return values
    if isinstance(values, Path):
        return Path(_expanded(str(values)))
    if isinstance(values, str):
        return _expanded(values)
    if isinstance(values, list):
        return [expand_home(value) for value in values]
    if isinstance(values, dict):
        return {key: expand_home(value) for key, value in values.items()}
    return values


def _expanded(text: str) -> str:
    return os.path.expanduser(text) if text.startswith("~") else text
