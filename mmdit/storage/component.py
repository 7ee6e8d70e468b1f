"""One network's folder as diffusers writes it: config.json and safetensors, compared before memory is taken."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmdit.errors import UserError, first_line, one_line
from mmdit.storage.json_object import read_object
from mmdit.storage.listing import visible
from mmdit.storage.weights import check_dtypes, read_header, refuse_non_finite

# Keys by which a folder could name code, or another library's loader.
_NAMING_CODE = ("auto_map", "quantization_config", "trust_remote_code", "custom_pipelines")
# Numbers of a config that no tensor shows, such as the size of images, stay below this.
_ALWAYS_ALLOWED = 8192
_COUNTS = ("depth", "layers_per_block", "num_layers")
# What diffusers' older autoencoders call the layers of their attention; it renames them when it loads.
_OLDER_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def read_config(path: Path, class_name: str) -> dict[str, Any]:
    """Read a component's configuration.

    Raises:
        UserError: it is not a JSON object, belongs to another class, or names code.
    """
    config = read_object(path, constants=True)  # a scheduler of diffusers has a setting of -Infinity
    found = config.get("_class_name")
    if found != class_name:
        raise UserError(f"{path}: _class_name is {found!r}, not {class_name!r}")
    refuse_code(config, path)
    return config


def refuse_code(config: Mapping[str, Any], where: object) -> None:
    """Raise UserError where a configuration names code, or another library's loader."""
    for key in _NAMING_CODE:
        if config.get(key):
            raise UserError(f"{where}: {key!r} would have other code load this folder: only weights are read from it")


def check_types(config: Mapping[str, Any], cls: Any, path: Path) -> None:
    """Compare values with the defaults of ``cls.__init__``. Raises UserError for another type, NaN or infinity."""
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        value, default = config.get(name), parameter.default
        if value is None or default is inspect.Parameter.empty:
            continue
        wanted = _wanted(value, default)
        if wanted is not None:
            raise UserError(f"{path}: {name} is {_short(value)}: give {wanted}")


def _wanted(value: Any, default: Any) -> str | None:
    """What a value should have been; None = it is right."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    if default is None:  # may be anything simple
        right = value is None or isinstance(value, str | bool) or is_number or isinstance(value, list)
        return None if right else "a text, a number, a list or null"
    if value == default and type(value) is type(default):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return None if isinstance(value, int) and is_number else "a whole number"
    if isinstance(default, float):
        return None if is_number else "a number"
    if isinstance(default, str):
        return None if isinstance(value, str) else "a text"
    if isinstance(default, dict):
        right = isinstance(value, dict) and all(_wanted(item, None) is None for item in value.values())
        return None if right else "keys with a text, a number, a list or null each"
    if isinstance(default, tuple | list):
        if not isinstance(value, list):
            return "a list"
        wrong = [wanted for item in value for one in default[:1] if (wanted := _wanted(item, one)) is not None]
        return f"a list, each {wrong[0]}" if wrong else None
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def check_component(folder: Path, cls: Any) -> dict[str, Any]:
    """Check a folder of ``cls`` before it is loaded, and return its configuration.

    First the numbers of the configuration, which decide how much is built, are compared with the largest that the files
    show. Then the network is built without memory, and its tensors are compared with the files' by name and shape.

    Raises:
        UserError: a file that is missing, damaged or not a regular file; a configuration of the wrong type or of other weights.
    """
    path = folder / "config.json"
    config = read_config(path, cls.__name__)
    check_types(config, cls, path)
    stored: dict[str, tuple[int, ...]] = {}
    files = visible(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no weights; there should be a diffusion_pytorch_model.safetensors")
    for file in files:
        header = read_header(file)
        check_dtypes(file, header)
        stored |= {_renamed(name): shape for name, (_, shape) in header.items()}
    check_sizes(_without_notes(config), stored, path)
    build = getattr(cls, "from_config", None) or (lambda values: cls(**_without_notes(values)))
    try:
        with torch.device("meta"):
            module = build(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # whatever arithmetic on wrong numbers ends in
        raise UserError(f"{path}: no {cls.__name__} has such a configuration ({first_line(error)})") from error
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    parameters = {name for name, _ in module.named_parameters()}
    for name, shape in stored.items():
        if name in own and own[name] != shape and not _is_older_attention(shape, own[name]):
            there, here = (" x ".join(map(str, each)) or "a number" for each in (shape, own[name]))
            raise UserError(
                f"{folder}: the weights are not those of its config.json: {name} is {there} there, {here} by the config"
            )
    lacking, left_over = sorted(parameters - stored.keys()), sorted(stored.keys() - own.keys())
    if lacking or left_over:
        what = f"the weights lack {lacking[0]!r}" if lacking else f"the weights hold {left_over[0]!r} besides"
        count = len(lacking) + len(left_over)
        raise UserError(f"{folder}: {what} ({count} tensors in all): they are not those of its config.json")
    return config


def load_component(folder: Path, cls: Any, **options: Any) -> Any:
    """Check a folder as ``check_component`` does, and load it with ``cls.from_pretrained``; weights are finite.

    Raises:
        UserError: as ``check_component``; or a weight is NaN or infinite.
    """
    check_component(folder, cls)
    try:
        module = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
    except UserError:
        raise
    except Exception as error:  # a folder is data: whatever it makes the library raise is about it
        raise UserError(f"{folder}: can't be loaded: {one_line(error)}") from error
    refuse_non_finite(module, folder)
    return module


def _is_older_attention(stored: tuple[int, ...], own: tuple[int, ...]) -> bool:
    return stored == (*own, 1, 1)  # a convolution of one pixel, which diffusers loads as a linear layer


def _renamed(name: str) -> str:
    if ".attentions." in name:
        for older, newer in _OLDER_NAMES:
            name = name.replace(older, newer)
    return name


def _without_notes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def check_sizes(config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Compare the numbers of a configuration with the shapes of its weights, so that nothing huge is built.

    Raises:
        UserError: a list longer, or a number larger, than the weights can need; it names ``path`` and the value.
    """
    largest = max((size for shape in stored.values() for size in shape), default=0)
    limit = max(largest, len(stored), _ALWAYS_ALLOWED)
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, list):
            if len(value) > limit:
                raise UserError(
                    f"{path}: {name} is a list of {len(value)} values; its weights have {len(stored)} tensors"
                )
            pending += [(name, item) for item in value]
        elif isinstance(value, dict):
            pending += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            most = max(len(stored), 1) if name in _COUNTS else limit
            if not abs(value) <= most:
                shown = f"are {len(stored)} tensors" if name in _COUNTS else f"have no side longer than {largest}"
                raise UserError(f"{path}: {name} is {value}, but its weights {shown}")
