"""YAML that is plain data: mappings, lists and scalars. Everything that could grow, loop or name code is refused unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mmdit.errors import UserError
from mmdit.storage.json_text import read_bounded

MAX_BYTES = 1 << 18
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_SCALAR = 10_000  # characters

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RefusedYaml(yaml.YAMLError):
    """YAML that may be well-formed, but isn't plain data, or is too large. The message says what and where."""


def check_yaml(text: str) -> None:
    """Refuse aliases, anchors, merge keys, tags, duplicate keys, deep nesting and large texts, before anything is built.

    Raises:
        yaml.YAMLError: it is not YAML, or has one of these (``RefusedYaml``).
    """
    if len(text) > MAX_BYTES:
        raise RefusedYaml(f"{len(text)} characters; at most {MAX_BYTES} are read")
    num_nodes = 0
    open_nodes: list[set[str] | None] = []  # keys of each open mapping, None = a list
    expects_key: list[bool] = []
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionEndEvent):
                open_nodes.pop()
                expects_key.pop()
                continue
            if not isinstance(event, yaml.NodeEvent):
                continue
            num_nodes += 1
            _refuse_node(event, num_nodes, len(open_nodes))
            if open_nodes and (keys := open_nodes[-1]) is not None:
                if expects_key[-1]:
                    _add_key(event, keys)
                expects_key[-1] = not expects_key[-1]
            if isinstance(event, yaml.CollectionStartEvent):
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                open_nodes.append(set() if is_mapping else None)
                expects_key.append(is_mapping)
    except (ValueError, RecursionError) as error:  # from the scanner: an escape beyond Unicode
        raise RefusedYaml(" ".join(str(error).split())) from error


def _refuse_node(event: Any, num_nodes: int, depth: int) -> None:
    where = f"line {event.start_mark.line + 1}"
    if isinstance(event, yaml.AliasEvent):
        raise RefusedYaml(f"alias *{event.anchor} in {where}: write the value out")
    if event.anchor is not None:
        raise RefusedYaml(f"anchor &{event.anchor} in {where}: write the values out where they are used")
    if event.tag is not None:
        raise RefusedYaml(f"tag {event.tag} in {where}: values are plain text, numbers, lists and keys with values")
    if num_nodes > MAX_NODES:
        raise RefusedYaml(f"more than {MAX_NODES} values")
    if depth > MAX_DEPTH:
        raise RefusedYaml(f"more than {MAX_DEPTH} levels deep in {where}")
    if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
        raise RefusedYaml(f"a value of {len(event.value)} characters in {where}; at most {MAX_SCALAR} are read")


def _add_key(event: Any, keys: set[str]) -> None:
    where = f"line {event.start_mark.line + 1}"
    if not isinstance(event, yaml.ScalarEvent):
        raise RefusedYaml(f"a key in {where} that is not a name")
    if event.value == "<<":
        raise RefusedYaml(f"merge key << in {where}: write the keys out")
    if event.value in keys:
        raise RefusedYaml(f"key {event.value!r} stands twice, again in {where}")
    keys.add(event.value)


def load_yaml(text: str) -> Any:
    """Text -> dict, list, str, int, float, bool, date or None. Raises yaml.YAMLError as ``check_yaml`` does."""
    check_yaml(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, OverflowError, RecursionError) as error:  # a date in month 13, a number of 5000 digits
        raise RefusedYaml(" ".join(str(error).split())) from error


def read_yaml(path: Path) -> Any:
    """Read a file as ``load_yaml`` does. Raises UserError naming the path."""
    content = read_bounded(path, MAX_BYTES)
    try:
        return load_yaml(content.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
