"""Where a model name points to, and whether the folder there is whole and safe to load."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mmdit.errors import UserError, first_line, nearest_names
from mmdit.hub import out_of_reach
from mmdit.storage.json_object import JsonObject, read_object
from mmdit.storage.listing import visible

if TYPE_CHECKING:
    from torch import nn

ASSETS = Path(__file__).resolve().parents[1] / "assets"
INDEX = "model_index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def bundled_models() -> dict[str, Path]:
    """Name -> folder of the models that come with the package."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{INDEX}"))}


def resolve_model(name: str | os.PathLike[str]) -> Path | str:
    """A bundled name, a local folder, or a Hub id -> the folder, or the Hub id as it is.

    Raises:
        UserError: a name that can be none of the three.
    """
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"model {str(name)!r} is a file: give the folder that holds {INDEX}")
    if str(name).count("/") == 1 and not str(name).startswith((".", "~", "/")):
        return str(name)
    known = f"bundled are {', '.join(nearest_names(str(name), bundled, 5))}" if bundled else "no model is bundled"
    raise UserError(
        f"no model {str(name)!r}: give a bundled name ({known}), an existing folder, or a Hub id owner/name"
    )


def check_folder(folder: Path, class_name: str, passed: Container[str] = ()) -> None:
    """Check a pipeline folder before anything is loaded; ``passed`` names components that come from elsewhere.

    Raises:
        UserError: a file that is missing or damaged, another pipeline's folder, or pickled weights, which can run code.
    """
    index = _read_json(folder / INDEX)
    if index.get("_class_name") != class_name:
        raise UserError(f"{folder / INDEX}: holds a {index.get('_class_name')}, not a {class_name}")
    for path in visible(folder.rglob("*")):
        if path.suffix in _PICKLES:
            raise UserError(f"{path}: pickled weights can run code and are not loaded; convert them to safetensors")
    for name, value in index.items():
        is_component = isinstance(value, list) and len(value) == 2 and not name.startswith("_")
        if is_component and value[0] is not None and name not in passed:
            _check_component(folder / name, is_model=name != "scheduler")


def _check_component(folder: Path, is_model: bool) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, though {INDEX} lists it")
    _read_json(folder / ("config.json" if is_model else "scheduler_config.json"))
    if not is_model:
        return
    for index in visible(folder.glob("*.safetensors.index*.json")):
        for shard in sorted(set(_shards(index))):
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard}: no such file, though {index.name} lists it")
    weights = visible(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder}: holds no weights; there should be a diffusion_pytorch_model.safetensors")
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: truncated or damaged safetensors file ({error})") from error


def _shards(index: Path) -> list[str]:
    weights = _read_json(index).object("weight_map")
    return [weights.field(name, str) for name in weights]


def check_weights(folder: Path, module: nn.Module) -> None:
    """Check that a loaded module got each of its parameters from ``folder``: diffusers leaves the others random.

    Raises:
        UserError: parameters that the files lack, or tensors in them that the module has no place for.
    """
    stored: set[str] = set()
    for path in visible(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    parameters = {name for name, _ in module.named_parameters()}
    lacking, left_over = sorted(parameters - stored), sorted(stored - parameters - module.state_dict().keys())
    if lacking or left_over:
        what = f"the weights lack {lacking[0]!r}" if lacking else f"the weights hold {left_over[0]!r} besides"
        count = len(lacking) + len(left_over)
        raise UserError(f"{folder}: {what} ({count} tensors in all): they are not those of its config.json")


def _read_json(path: Path) -> JsonObject:
    return read_object(path, "a model folder needs it")


def download(hub: Callable[..., str | os.PathLike[str]], repository: str, kwargs: Mapping[str, Any]) -> Path:
    """Fetch a Hub repository with ``hub``, diffusers' own ``download``; one line for whatever goes wrong."""
    offline = out_of_reach(repository)
    try:
        return Path(hub(repository, **({**kwargs, "local_files_only": True} if offline else kwargs)))
    except Exception as error:  # the network, the Hub and the repository each have exceptions of their own
        why = (
            "the Hub can't be reached and its cache lacks it"
            if offline
            else f"the Hub did not deliver it: {first_line(error)}"
        )
        raise UserError(f"model {repository!r} is neither bundled nor a local folder, and {why}") from error
