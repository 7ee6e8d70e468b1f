"""One folder of transformers: a model, a tokenizer or a processor. Checked before the library reads it.

The library compares names and shapes of weights by itself (``mmdit.encoders.pretrained`` refuses what it reports); here is
what it would not refuse: code, adapters that name other models, other files than safetensors, and sizes that can't be meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, first_line
from mmdit.storage.component import refuse_code
from mmdit.storage.json_object import JsonObject, read_object
from mmdit.storage.json_text import read_bounded
from mmdit.storage.listing import visible
from mmdit.storage.weights import FLOATING, read_header

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
ADAPTER = "adapter_config.json"
MAX_TOKENIZER_BYTES = 64 * 2**20  # Gemma's, of 262,144 pieces, has 33 MB
MAX_TEMPLATE_BYTES = 2**20
_MAX_LIST = 4096
_MAX_SIDE = 8192  # pixels
_LAYERS = ("layers", "depth", "blocks")
_POSITIONS = "position_ids"  # whole numbers, which older versions of the library saved beside the weights
_BUILT_IN = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm"})


def check_model(folder: Path) -> JsonObject:
    """Check config.json and the headers of the weights; return the configuration.

    Raises:
        UserError: a file that is missing or damaged, code or another model named, weights of another kind than numbers, or
            more layers than the weights can have.
    """
    config = _read_config(folder / CONFIG)
    if (folder / ADAPTER).exists():
        raise UserError(f"{folder / ADAPTER}: an adapter names another model to load: save the two merged")
    num_tensors = 0
    files = visible(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no weights; there should be a model.safetensors")
    for file in files:
        header = read_header(file)
        num_tensors += len(header)
        for name, (dtype, _) in header.items():
            if dtype not in FLOATING and not name.endswith(_POSITIONS):
                raise UserError(f"{file}: {name} is of {dtype}; weights are {', '.join(sorted(FLOATING))}")
    for name, value in _entries(config):
        counts = any(word in name.rpartition(".")[2] for word in _LAYERS) and isinstance(value, int)
        if counts and not isinstance(value, bool) and abs(value) > num_tensors:
            raise UserError(f"{folder / CONFIG}: {name} is {value}, but its weights are {num_tensors} tensors")
    return config


def check_tokenizer(folder: Path) -> None:
    """Check a fast tokenizer's files. Raises UserError for one that is missing, too large or damaged, or names code."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(f"{path}: no such file; a fast tokenizer is saved as one")
    read_object(path, max_bytes=MAX_TOKENIZER_BYTES)
    if (folder / TOKENIZER_CONFIG).is_file():
        _read_config(folder / TOKENIZER_CONFIG)
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except BaseException as error:  # its own kind of panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: not a tokenizer: {first_line(error)}") from None


def check_image_processor(folder: Path) -> None:
    """Check how images are prepared. Raises UserError for a missing file, code, or sizes that no image has."""
    paths = [path for path in (folder / PREPROCESSOR, folder / PROCESSOR) if path.is_file()]
    if not paths:
        raise UserError(f"{folder / PREPROCESSOR}: no such file")
    for path in paths:
        config = _read_config(path)
        areas = any("Qwen" in str(config.get(key)) for key in ("image_processor_type", "processor_class"))
        most = _MAX_SIDE**2 if areas else _MAX_SIDE  # Qwen's sizes are pixels of a whole image
        for name, value in _entries(config):
            if isinstance(value, int | float) and not abs(value) <= most:
                raise UserError(f"{path}: {name} is {value}: give at most {most}")


def check_processor(folder: Path) -> None:
    """Check a tokenizer and an image processor in one folder, and the template of their chats."""
    check_tokenizer(folder)
    check_image_processor(folder)
    for path in visible(folder.glob("*config.json")):  # how videos are prepared, too
        _read_config(path)
    for path in visible(folder.rglob("*.jinja")):
        read_bounded(path, MAX_TEMPLATE_BYTES)


def _read_config(path: Path) -> JsonObject:
    config = read_object(path, constants=True, max_bytes=MAX_TOKENIZER_BYTES)
    refuse_code(config, path)
    for name, value in _entries(config):
        key = name.rpartition(".")[2]
        if isinstance(value, dict):
            refuse_code(value, f"{path}, {name}")
        elif isinstance(value, list) and len(value) > _MAX_LIST:
            raise UserError(f"{path}: {name} is a list of {len(value)} values: give at most {_MAX_LIST}")
        elif isinstance(value, float) and math.isnan(value):
            raise UserError(f"{path}: {name} is not a number")
        elif key.endswith(("attn_implementation", "experts_implementation")) and value not in (None, *_BUILT_IN):
            raise UserError(f"{path}: {name} is {value!r}, which would be fetched as code: leave it out")
    return config


def _entries(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every entry, those of objects inside objects and lists too."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, Mapping):
            yield from _entries(value, f"{name}.")
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping):
                    yield from _entries(item, f"{name}.")
