"""A frozen network of transformers or diffusers: loaded from safetensors alone, moved, and described."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature

from mmdit.errors import UserError, one_line
from mmdit.sources.labelling.source import ModelSource
from mmdit.storage.component import read_object
from mmdit.storage.names import text_of


class FrozenNetwork:
    """A frozen network whose outputs become files of a dataset.

    Args:
        source: where the weights are.
        dtype: name of the dtype that it runs in.
    """

    model: Any

    def __init__(self, source: ModelSource, dtype: str) -> None:
        self.source = source
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Move the network."""
        self.device = device
        self.model.to(device)

    def facts(self) -> Mapping[str, Any]:
        """Return what decides the outputs besides the weights, as JSON values."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """Return what dataset.json says of what it made."""
        return {
            "model": text_of(self.source.name),
            "kind": self.source.kind,
            "revision": self.source.revision,
            "licence": self.source.licence,
            "dtype": str(self.dtype).removeprefix("torch."),
            **self.facts(),
        }


def load_transformers(auto_class: Any, source: ModelSource, dtype: torch.dtype) -> Any:
    """Load a frozen transformers model from a folder. Raises UserError where weights are missing or damaged."""
    if (source.folder / "adapter_config.json").exists():  # it would have other folders' weights loaded
        raise UserError(f"{source.name}: holds an adapter (adapter_config.json): give a folder of the merged weights")
    try:
        model, info = auto_class.from_pretrained(
            source.folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,  # unset, transformers asks on the terminal
        )
    except Exception as error:  # damaged weights surface as OSError, ValueError, RuntimeError or safetensors' own type
        raise _unloadable(source, error) from error
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise UserError(f"{source.name}: its weights lack {len(info['missing_keys'])} tensors, first {first!r}")
    return model.eval().requires_grad_(False)


def load_processor(auto_class: Any, source: ModelSource) -> Any:
    """Load what prepares a transformers model's input. Raises UserError where it is missing."""
    try:
        return auto_class.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _unloadable(source, error) from error


def join_equal(inputs: Sequence[Mapping[str, torch.Tensor]]) -> Iterator[tuple[list[int], BatchFeature]]:
    """Join inputs of equal shapes into batches: to pad images to a common size would change what is found in them.

    Args:
        inputs: what a processor made of each image, tensors (1, ...).

    Yields:
        Which of ``inputs`` a batch is of, and their tensors (N, ...).
    """
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, tensors in enumerate(inputs):
        groups.setdefault(tuple(tensor.shape for tensor in tensors.values()), []).append(number)
    for numbers in groups.values():
        names = inputs[numbers[0]].keys()
        yield numbers, BatchFeature({name: torch.cat([inputs[number][name] for number in numbers]) for name in names})


def load_diffusers(pipeline_class: Any, source: ModelSource, dtype: torch.dtype) -> Any:
    """Load a diffusers pipeline from a folder. Raises UserError where parts are missing or damaged."""
    _refuse_other_libraries(source)
    try:
        return pipeline_class.from_pretrained(
            source.folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except Exception as error:
        raise _unloadable(source, error) from error


def _refuse_other_libraries(source: ModelSource) -> None:
    """diffusers imports whatever library a pipeline's index names for a part: it may be one of these two."""
    for name, part in read_object(source.folder / "model_index.json").items():
        if name.startswith("_") or not isinstance(part, list):
            continue
        library = part[0] if len(part) == 2 else part
        if library not in (None, "diffusers", "transformers") or not isinstance(part[1], str | None):
            raise UserError(f"{source.name}: its {name} is {part!r}; parts are classes of diffusers or transformers")


def _unloadable(source: ModelSource, error: Exception) -> UserError:
    return UserError(f"{source.name}: can't be loaded from {source.folder}: {one_line(error)}")
