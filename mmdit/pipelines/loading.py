"""Find the folder of a model's name, and check that it is whole and safe to load."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.errors import UserError, first_line, nearest_names
from mmdit.hub import is_hub_id, out_of_reach
from mmdit.pipelines.defaults import Defaults
from mmdit.pipelines.labels import check_ids
from mmdit.storage.component import check_component, check_types, read_config
from mmdit.storage.json_object import read_object
from mmdit.storage.listing import visible
from mmdit.storage.transformers_folder import check_image_processor, check_model, check_processor, check_tokenizer

ASSETS = Path(__file__).resolve().parents[1] / "assets"
INDEX = "model_index.json"
SCHEDULER = "scheduler"
TEXT_ENCODERS = (
    *("CLIPTextModel", "T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"),
    *(
        "BertModel",
        "DistilBertModel",
        "RobertaModel",
        "XLMRobertaModel",
        "DebertaModel",
        "DebertaV2Model",
        "ElectraModel",
    ),
)
READERS = ("Llava", "Idefics3", "SmolVLM", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL")  # of text and images
MULTIMODAL = tuple(f"{kind}{head}" for kind in READERS for head in ("ForConditionalGeneration", "Model"))
TOKENIZERS = ("CLIP", "T5", "Bert", "DistilBert", "Roberta", "XLMRoberta", "Deberta", "DebertaV2", "Electra", "Qwen2")
FAST_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
# component -> class -> library: all that a folder's index may name, besides the schedulers of diffusers
COMPONENTS: dict[str, dict[str, str]] = {
    "transformer": {"MultimodalDiT": "mmdit.models.transformer"},
    "vae": {"AutoencoderKL": "diffusers"},
    SCHEDULER: {
        "FlowMatchEulerDiscreteScheduler": "diffusers",
        "EulerMaruyamaScheduler": "mmdit.flow.schedulers",
        "FlowMapScheduler": "mmdit.flow.schedulers",
    },
}
# Components that a model may lack, all of transformers -> the classes that a folder's index may name.
TRANSFORMERS = "transformers"
OPTIONAL: dict[str, tuple[str, ...]] = {
    "text_encoder": (*TEXT_ENCODERS, *MULTIMODAL),
    "tokenizer": tuple(f"{kind}Tokenizer{fast}" for kind in TOKENIZERS for fast in ("", "Fast")) + FAST_TOKENIZERS,
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "image_processor": ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
    "processor": tuple(f"{kind}Processor" for kind in READERS),
}
CHECKS: dict[str, Callable[[Path], None]] = {
    "tokenizer": check_tokenizer,
    "image_processor": check_image_processor,
    "processor": check_processor,
}
_RECORDS = ("modalities", "id2label", "defaults")
_CODE = "pipeline"  # with the class's name: what diffusers reads of a folder, and this package never does
MAX_TRAIN_TIMESTEPS = 100_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def bundled_models() -> dict[str, Path]:
    """Name -> folder of the models that come with the package."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{INDEX}"))}


def resolve_model(name: str | os.PathLike[str]) -> Path | str:
    """A bundled name, a local folder, or a Hub id -> the folder, or the Hub id unchanged.

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
    if is_hub_id(str(name)):
        return str(name)
    known = f"bundled are {', '.join(nearest_names(str(name), bundled, 5))}" if bundled else "no model is bundled"
    raise UserError(
        f"no model {str(name)!r}: give a bundled name ({known}), an existing folder, or a Hub id owner/name"
    )


def safe_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' ``from_pretrained`` with which it reads safetensors only, and runs no code of a folder.

    Raises:
        UserError: they ask for one of the two.
    """
    if kwargs.get("use_safetensors") is False:
        raise UserError("use_safetensors is False: weights are read from safetensors only")
    if kwargs.get("custom_pipeline") is not None:
        raise UserError("custom_pipeline is given: no code of a folder is run here; leave it out")
    kept = {name: value for name, value in kwargs.items() if name not in ("trust_remote_code", "custom_pipeline")}
    return {**kept, "use_safetensors": True}


def check_folder(folder: Path, class_name: str, passed: Container[str] = ()) -> None:
    """Check a pipeline folder before anything is loaded; ``passed`` names components that come from elsewhere.

    Nothing is imported that isn't in ``COMPONENTS``, whatever the folder names.

    Raises:
        UserError: a file that is missing, damaged or of the wrong type; another pipeline's folder; other classes than
            ours; weights that are pickled, which can run code, or that are not those of their configuration.
    """
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder / INDEX}: no such file; give a model's folder, as training and save_pretrained write it"
        )
    index = read_object(folder / INDEX)
    if index.get("_class_name") not in (class_name, [_CODE, class_name]):
        raise UserError(f"{folder / INDEX}: holds a {index.get('_class_name')}, not a {class_name}")
    for path in visible(folder.rglob("*")):
        if path.suffix in _PICKLES:
            raise UserError(f"{path}: pickled weights can run code and are not loaded; convert them to safetensors")
    _check_index(index, folder / INDEX)
    configs = {}
    for name in (*COMPONENTS, *(name for name in OPTIONAL if _is_given(index.get(name)))):
        if name in passed:
            continue
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder, though {INDEX} lists it")
        if name == SCHEDULER:
            check_scheduler(folder / name, *index[name])
        elif name in OPTIONAL:
            _check_shards(folder / name)
            if name in CHECKS:
                CHECKS[name](folder / name)
            else:
                _check_kind(check_model(folder / name), _class_of(*index[name]), folder / name)
        else:
            _check_shards(folder / name)
            configs[name] = check_component(folder / name, _class_of(*index[name]))
    if "num_classes" in configs.get("transformer", {}):
        try:
            check_ids(map(int, index.get("id2label") or ()), configs["transformer"]["num_classes"])
        except UserError as error:
            raise UserError(f"{folder / INDEX}: {error}") from None


def _check_index(index: Mapping[str, Any], path: Path) -> None:
    for name, value in index.items():
        is_component = isinstance(value, list) and not name.startswith("_")
        if is_component and name not in (*COMPONENTS, *OPTIONAL, *_RECORDS):
            raise UserError(f"{path}: {name} is {value!r}; the components are {', '.join((*COMPONENTS, *OPTIONAL))}")
    for name, allowed in COMPONENTS.items():
        value = index.get(name)
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
            raise UserError(f"{path}: {name} is {value!r}; give a library and a class")
        library, class_name = value
        if allowed.get(class_name) != library and not (name == SCHEDULER and _is_diffusers_scheduler(*value)):
            known = ", ".join(f"{known} of {where}" for known, where in allowed.items())
            raise UserError(f"{path}: {name} is {class_name} of {library}, which is never loaded: it can be {known}")
    for name, classes in OPTIONAL.items():
        value = index.get(name)
        if value not in (None, [None, None]) and not (
            isinstance(value, list) and len(value) == 2 and value[0] == TRANSFORMERS and value[1] in classes
        ):
            raise UserError(
                f"{path}: {name} is {value!r}, which is never loaded: it can be, of {TRANSFORMERS}, {', '.join(classes)}"
            )
    for name in _RECORDS:
        if not isinstance(index.get(name), dict | None):
            raise UserError(f"{path}: {name} is a {type(index[name]).__name__}; give an object or null")
    for key, value in (index.get("id2label") or {}).items():
        if not (key.isdecimal() and key.isascii() and len(key) < 10 and isinstance(value, str)):
            raise UserError(f"{path}: id2label holds {key!r}: {value!r}; give class ids with names")
    try:
        Defaults.of(index.get("defaults"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, values in (index.get("modalities") or {}).items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: modality {name!r} is a {type(values).__name__}; give an object")


def _check_kind(config: Mapping[str, Any], cls: Any, folder: Path) -> None:
    found, right = config.get("model_type"), cls.config_class.model_type
    if found != right:
        raise UserError(f"{folder / 'config.json'}: model_type is {found!r}, not {right!r}")


def _is_given(value: Any) -> bool:
    """Whether an index, whose form was checked, names a component; [null, null] = none."""
    return isinstance(value, list) and value != [None, None]


def _is_diffusers_scheduler(library: str, class_name: str) -> bool:
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    found = (
        getattr(diffusers, class_name, None) if library == "diffusers" and class_name.endswith("Scheduler") else None
    )
    return isinstance(found, type) and issubclass(found, SchedulerMixin)


def _class_of(library: str, class_name: str) -> Any:
    """A class of ``COMPONENTS`` or a scheduler of diffusers: the names were checked."""
    return getattr(importlib.import_module(library), class_name)


def check_scheduler(folder: Path, library: str, class_name: str) -> None:
    """Check a scheduler's settings by building it and laying out steps. Raises UserError where that can't be done."""
    from mmdit.flow.schedulers import set_timesteps  # diffusers; ``mmdit env`` and the help don't wait for it

    path = folder / "scheduler_config.json"
    config, cls = read_config(path, class_name), _class_of(library, class_name)
    check_types(config, cls, path)
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= MAX_TRAIN_TIMESTEPS:
            raise UserError(f"{path}: {key} is {value}: give a number from 0 to {MAX_TRAIN_TIMESTEPS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = cls.from_config(config)
            set_timesteps(scheduler, 3, "cpu")
        sigmas = torch.as_tensor(scheduler.sigmas).double()
        descends = bool((sigmas.diff() <= 0).all() and sigmas[0] > sigmas[-1] and torch.isfinite(sigmas).all())
    except Exception as error:  # whatever arithmetic on wrong numbers ends in
        raise UserError(f"{path}: no scheduler has such settings ({first_line(error)})") from error
    if not descends:
        raise UserError(f"{path}: these settings give no steps from noise to data ({sigmas.tolist()})")


def load_optional(folder: Path, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Load the components of transformers in a checked folder, but for those that ``kwargs`` (diffusers') replace.

    diffusers could load them too; it would fill weights that are missing with random numbers.

    Raises:
        UserError: a component that can't be loaded; weights that are missing, left over, or not finite.
    """
    index, loaded = read_object(folder / INDEX), {}
    for name in OPTIONAL:
        if name in kwargs or not _is_given(index.get(name)):
            continue
        source, cls = PretrainedFolder(folder / name, {}, str(folder / name)), _class_of(*index[name])
        if name in CHECKS:
            loaded[name] = source.load(cls)
            continue
        dtype, variant = _dtype_of(name, kwargs), kwargs.get("variant")
        has_variant = variant is not None and any((folder / name).glob(f"*.{variant}*.safetensors"))
        loaded[name] = source.load_model(cls, dtype, variant if has_variant else None, alone=True)
    return loaded


@contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Let errors be UserErrors that say which model can't be loaded: a folder is data, whatever it makes libraries raise."""
    try:
        yield
    except Exception as error:
        why = str(error) if isinstance(error, UserError) else first_line(error)
        raise UserError(f"model {name!r} can't be loaded: {why}") from error


def _dtype_of(name: str, kwargs: Mapping[str, Any]) -> torch.dtype:
    """The precision that diffusers' arguments ask for."""
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    if isinstance(dtype, Mapping):
        dtype = dtype.get(name, dtype.get("default"))
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _check_shards(folder: Path) -> None:
    for path in visible(folder.glob("*.safetensors.index*.json")):
        shards = read_object(path).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise UserError(f"{path}: its weight_map must be an object of file names")
        for shard in sorted(set(shards.values())):
            if Path(shard).name != shard:
                raise UserError(f"{path}: names {shard!r}, which is not in its folder")
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard}: no such file, though {path.name} lists it")


def download(hub: Callable[..., str | os.PathLike[str]], repository: str, kwargs: Mapping[str, Any]) -> Path:
    """Fetch a Hub repository with ``hub``, diffusers' own ``download``; one line for whatever goes wrong."""
    offline = out_of_reach(repository)
    try:
        return Path(hub(repository, **({**kwargs, "local_files_only": True} if offline else kwargs)))
    except Exception as error:  # the network, the Hub and the repository each raise their own kinds
        why = (
            "the Hub can't be reached and its cache lacks it"
            if offline
            else f"the Hub did not deliver it: {first_line(error)}"
        )
        raise UserError(f"model {repository!r} is neither bundled nor a local folder, and {why}") from error
