"""What gives a run's weights their meaning: recorded in its checkpoints, and compared before a run goes on from one.

Weights of equal names and shapes mean another thing where the network predicts another, its modalities have another order or
are encoded otherwise. A record is plain values by dotted names, such as "network.prediction"; what may change from one part of a
run to the next (steps, rates, tasks, weights of losses) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdit.encoders.hidden_layer import noted_layer
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.errors import UserError
from mmdit.modalities import Modality
from mmdit.pipelines.loading import INDEX
from mmdit.storage.digests import digest_tensors
from mmdit.storage.json_object import flatten, read_object
from mmdit.storage.requests import Request
from mmdit.storage.transformers_folder import CONFIG
from mmdit.storage.yaml_text import read_yaml

# Of networks' configs: what training alone reads, and what libraries write about themselves.
_FREE = ("alignment_", "class_dropout_prob", "_", "transformers_version", "architectures", "dtype", "torch_dtype")


def network_meaning(network: nn.Module) -> dict[str, Any]:
    """The record of a network: its config, empty where it has none."""
    config = getattr(network, "config", None) or {}
    return _config_meaning(config.to_dict() if hasattr(config, "to_dict") else config)


def latents_meaning(modalities: Iterable[Modality], categories: Iterable[str]) -> dict[str, Any]:
    """The record of what latents and class numbers stand for."""
    records = {each.name: {k: v for k, v in each.to_dict().items() if k != "loss_weight"} for each in modalities}
    return {**flatten({"modalities": records}), "categories": list(categories)}


def prompts_meaning(encoder: FrozenPromptEncoder) -> dict[str, Any]:
    """The record of the frozen networks that read prompts: which they are, by their vectors alone, and whose states they give."""
    found: dict[str, Any] = {}
    for name, part in encoder.components.items():
        if isinstance(part, nn.Module):
            vectors = {key: value for key, value in part.state_dict().items() if value.ndim < 2}  # quickly read
            found[f"prompts.{name}"] = digest_tensors(vectors, dtype=torch.float32)
            found[f"prompts.{name}.layer"] = noted_layer(part)
    return found


def check_meaning(own: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where a checkpoint's weights mean something else than a module's.

    Args:
        own: the module's record; a name that the checkpoint's lacks, as those of older versions may, is not compared.
        checkpoint: what ``path`` holds. Without a record its run's pipeline and config.yaml tell what they can.
    """
    recorded = checkpoint.get("meaning")
    recorded = _meaning_of_folder(path.absolute().parent.parent) if recorded is None else recorded
    Request(own, optional=own).refuse_other(
        recorded, path, "weights", "resume with the run's own configuration and data, or choose another --output"
    )


def _meaning_of_folder(folder: Path) -> dict[str, Any]:
    """What the folder of a run of recipe "transformer" tells; nothing of what is missing, unreadable or of another recipe."""
    found: dict[str, Any] = {}
    try:
        config = read_yaml(folder / "config.yaml")
        if config.get("recipe", "transformer") == "transformer" and config.get("lora") is None:
            given = {key: value for key, value in config["model"].items() if value is not None}
            found |= _config_meaning({**given, "prediction": config["objective"]["prediction"]})
    except (UserError, KeyError, TypeError, AttributeError):
        pass
    try:
        found |= _config_meaning(read_object(folder / "pipeline" / "transformer" / CONFIG))
        index = read_object(folder / "pipeline" / INDEX)
        modalities = [Modality.from_dict(record) for record in index["modalities"].values()]
        names = sorted(index["id2label"].items(), key=lambda each: int(each[0]))
        found |= latents_meaning(modalities, [name for _, name in names])
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        pass
    return found


def _config_meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(config, "network.")
    return {key: value for key, value in flat.items() if not key.rpartition(".")[2].startswith(_FREE)}
