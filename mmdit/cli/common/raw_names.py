"""File names that are not UTF-8, as arguments: Python holds their odd bytes as half surrogates, which YAML's reader refuses.

Options are read as YAML values, so each odd byte travels through the parser as a character of a private plane.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FIRST, _PRIVATE, _COUNT = 0xDC80, 0x10FF00, 128  # half surrogates for the bytes 0x80 to 0xFF
_HIDE = {_FIRST + number: _PRIVATE + number for number in range(_COUNT)}
_SHOW = {private: surrogate for surrogate, private in _HIDE.items()}


def hide_bytes(args: Sequence[str]) -> list[str]:
    """Return arguments that YAML's reader takes; the parser opens the file of ``--config``, so that stays unchanged."""
    previous = ["", *args]
    is_config = [
        before == "--config" or word.startswith("--config=") for before, word in zip(previous, args, strict=False)
    ]
    return [word if is_file else word.translate(_HIDE) for word, is_file in zip(args, is_config, strict=True)]


def show_bytes(value: Any) -> Any:
    """Return parsed values with the names as they were given."""
    if isinstance(value, str):
        return value.translate(_SHOW)
    if isinstance(value, Path):
        return Path(str(value).translate(_SHOW))
    if isinstance(value, (list, tuple)):
        return type(value)(show_bytes(entry) for entry in value)
    if isinstance(value, Mapping):
        return {show_bytes(key): show_bytes(entry) for key, entry in value.items()}
    if isinstance(value, Namespace):
        for key, entry in vars(value).items():
            setattr(value, key, show_bytes(entry))
    return value
