"""A timm vision transformer from a folder as the Hub stores it, config.json and model.safetensors, and nothing else of it.

timm itself would follow what the config says: addresses and other files to load weights from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from mmdit.errors import UserError
from mmdit.storage.component import check_sizes, refuse_code
from mmdit.storage.json_object import read_object
from mmdit.storage.weights import check_dtypes, read_header, refuse_non_finite

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
_LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights"}
)


def load_timm_folder(folder: Path, image_size: Callable[[tuple[int, int]], tuple[int, int] | int]) -> Any:
    """Build the folder's architecture without classes, with its weights: finite, and all that it needs.

    Args:
        folder: config.json names a timm ``architecture`` and may give ``model_args``, numbers and names;
            ``pretrained_cfg`` may give ``mean`` and ``std``.
        image_size: the patch size (rows, columns) -> the image size to build for.

    Raises:
        UserError: an unknown architecture, or weights that are missing, damaged or another network's.
    """
    path = folder / CONFIG_NAME
    config = read_object(path)
    refuse_code(config, path)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{path}: 'architecture' is {architecture!r}, not a timm model")
    arguments = _arguments(config.get("model_args") or {}, path)
    weights = folder / WEIGHTS_NAME
    try:
        header = read_header(weights)
    except UserError as error:
        raise UserError(f"{weights}: missing or damaged weights: {error}") from None
    check_dtypes(weights, header)
    check_sizes(arguments, {name: shape for name, (_, shape) in header.items()}, path)
    try:
        with torch.device("meta"):
            patch = timm.create_model(architecture, pretrained=False, **arguments).patch_embed.patch_size
        arguments["img_size"] = image_size(patch)
        with torch.device("meta"):
            wanted = timm.create_model(architecture, pretrained=False, **arguments).state_dict()
        missing = sorted(name for name in wanted if name not in header)
        if missing and not _has_other_names(header):
            raise UserError(f"{weights}: lacks {len(missing)} weights of {architecture}, first {missing[0]!r}")
        too_large = [name for name in missing if wanted[name].numel() > sum(map(_count, header.values()))]
        if too_large:
            raise UserError(f"{weights}: are not those of {architecture}, which has a larger {too_large[0]!r}")
        model = timm.create_model(architecture, pretrained=False, **arguments)
        found = timm.models.vision_transformer.checkpoint_filter_fn(load_file(weights), model)
        missing = sorted(wanted.keys() - found.keys())
        if missing:
            raise UserError(f"{weights}: lacks {len(missing)} weights of {architecture}, first {missing[0]!r}")
        model.load_state_dict({key: found[key] for key in wanted})
    except UserError:
        raise
    except Exception as error:  # whatever other numbers and other weights make timm raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"{folder}: can't be loaded as {architecture}: {reason}") from error
    refuse_non_finite(model, weights)
    model.pretrained_cfg = {**model.pretrained_cfg, **_normalisation(config.get("pretrained_cfg"), path)}
    return model


def _count(entry: tuple[str, tuple[int, ...]]) -> int:
    return math.prod(entry[1])


def _has_other_names(header: dict[str, Any]) -> bool:
    """Whether these are the names of another code's checkpoint of the network, which timm translates."""
    return not any(name.startswith("blocks.") and ".attn.qkv.weight" in name for name in header)


def _arguments(given: Any, path: Path) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError(f"{path}: model_args is a {type(given).__name__}; give an object")
    for name, value in given.items():
        simple = value is None or isinstance(value, bool | int | float | str | list)
        if name in _LOADING or not simple:
            raise UserError(f"{path}: model_args has {name} = {value!r}: only sizes and settings of the network")
    return {**given, "num_classes": 0}


def _normalisation(given: Any, path: Path) -> dict[str, tuple[float, ...]]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{path}: pretrained_cfg is a {type(given).__name__}; give an object")
    found = {}
    for name in ("mean", "std"):
        values = given.get(name)
        if values is None:
            continue
        numbers = isinstance(values, list) and len(values) == 3 and all(_is_number(value) for value in values)
        if not numbers or (name == "std" and not all(value > 0 for value in values)):
            raise UserError(f"{path}: pretrained_cfg has {name} = {values!r}: give three numbers")
        found[name] = tuple(map(float, values))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
