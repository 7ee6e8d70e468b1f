"""The file of LoRA weights, as diffusers writes it: safetensors, and the adapter's settings as JSON in its metadata."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from mmdit.errors import UserError, first_line
from mmdit.hub import is_hub_id, out_of_reach
from mmdit.storage.files import atomic_file
from mmdit.storage.json_text import parse_json, quoted
from mmdit.storage.listing import visible
from mmdit.storage.weights import check_dtypes, read_header

WEIGHTS = "pytorch_lora_weights.safetensors"
SETTINGS = "lora_adapter_metadata"  # key of the file's metadata
PREFIX = "transformer."
_PATTERN = re.compile(r"\^?[\w.]+\$?")  # of a layer's name: peft takes it for a regular expression
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def find_lora(
    source: str | os.PathLike[str],
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub: Mapping[str, Any] | None = None,
) -> Path:
    """A file, a folder that holds one, or a Hub id -> the file. Raises UserError where there is none."""
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / (subfolder or "")
        if weight_name is not None:
            return _safe(path / weight_name)
        if (path / WEIGHTS).is_file():
            return path / WEIGHTS
        files = visible(path.glob("*.safetensors"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise UserError(
                f"{path}: holds no {WEIGHTS}, and of other safetensors files {found}: name one as weight_name"
            )
        return files[0]
    if path.is_file() or not is_hub_id(str(source)):
        if not path.exists():
            raise UserError(f"LoRA {str(source)!r}: no such file or folder, and no Hub id owner/name")
        return _safe(path)
    from huggingface_hub import hf_hub_download

    offline = out_of_reach(str(source))
    name = str(_safe(Path(weight_name or WEIGHTS)))
    arguments = {"local_files_only": offline, **(hub or {})}
    try:
        return Path(hf_hub_download(str(source), name, subfolder=subfolder, **arguments))
    except Exception as error:  # the network, the Hub and the repository each raise their own kinds
        why = "the Hub can't be reached and its cache lacks it" if offline else first_line(error)
        raise UserError(f"LoRA {str(source)!r} is no file or folder here, and {why}") from error


def _safe(path: Path) -> Path:
    if path.suffix in _PICKLED:
        raise UserError(f"{path}: pickled weights can run code and are not loaded; convert them to safetensors")
    return path


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Weights without the prefix, and the adapter's settings, None where the file names none.

    Raises:
        UserError: a file that is missing or damaged, holds other than weights, or whose settings can't be read.
    """
    check_dtypes(path, read_header(path))
    with safe_open(path, framework="pt") as file:
        stored = (file.metadata() or {}).get(SETTINGS)
    weights = without_prefix(safetensors.torch.load_file(path))
    if stored is None:
        return weights, None
    try:
        settings = parse_json(stored.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise UserError(f"{path}: its metadata {SETTINGS} is {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: its metadata {SETTINGS} is {quoted(settings)}; it must be an object")
    return weights, {name.removeprefix(PREFIX): value for name, value in settings.items()}


def without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the transformer has them; files of a pipeline say "transformer." before each."""
    return {name.removeprefix(PREFIX): weight for name, weight in weights.items()}


def adapter_settings(ranks: Mapping[str, int], settings: Mapping[str, Any] | None, where: object) -> dict[str, Any]:
    """Arguments of ``peft.LoraConfig``: ranks and targets from the weights' shapes, scales from the file's settings.

    Without settings alpha is the rank, a scale of 1, as diffusers takes it. Nothing else that a file says is passed on.

    Raises:
        UserError: settings that are no numbers, or of a kind of adapter that the weights are not.
    """
    given = dict(settings or {})
    if given.get("use_dora"):
        raise UserError(f"{where}: is a DoRA, which is not loaded here: give a LoRA")
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{name}": each for name, each in ranks.items() if each != rank}
    alphas = given.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(_PATTERN.fullmatch(name) for name in alphas):
        raise UserError(f"{where}: alpha_pattern is {quoted(alphas)}; give names of layers with numbers")
    if settings is None:  # alpha is the rank, layer by layer
        alphas = others
    alpha = _positive(given.get("lora_alpha", rank), "lora_alpha", where)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": others,
        "alpha_pattern": {name: _positive(value, f"alpha of {name}", where) for name, value in alphas.items()},
        "target_modules": sorted(ranks),
        "use_rslora": given.get("use_rslora") is True,
    }


def _positive(value: Any, name: str, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{where}: {name} is {quoted(value)}; give a number above 0")
    return value


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``peft``, ``LoraConfig.to_dict()``, as JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, set | frozenset):
            return sorted(value)
        return value

    return {name: plain(value) for name, value in values.items()}


def write_lora(path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> None:
    """Write weights, whose names get the prefix, and settings; the file appears whole or not at all."""
    tensors = {
        f"{PREFIX}{name.removeprefix(PREFIX)}": weight.detach().cpu().contiguous() for name, weight in weights.items()
    }
    metadata = {"format": "pt"}
    if settings:
        named = {f"{PREFIX}{name}": value for name, value in plain_settings(settings).items()}
        metadata[SETTINGS] = json.dumps(named, indent=2, sort_keys=True)
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))
