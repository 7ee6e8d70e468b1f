"""LoRA on the transformer: low-rank updates beside the weights of linear layers (arXiv 2106.09685), by peft as in diffusers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diffusers.loaders.peft import PeftAdapterMixin
from torch import Tensor, nn

from mmdit.errors import UserError, unknown_name

_WEIGHT = re.compile(r"(.+)\.lora_([AB])\.weight")
# Wrappers of peft around a layer: its own parts are no layers of the network.
_INSIDE_ADAPTER = re.compile(r"\.(base_layer|lora_\w+)(\.|$)")


def require_peft() -> None:
    """Raise UserError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("LoRA needs the package peft: pip install 'multimodal-dit[lora]'")


class AdaptersMixin(PeftAdapterMixin):
    """Base of ``MultimodalDiT``: adapters as every transformer of diffusers has them, refused early where they don't fit.

    ``add_adapter(peft.LoraConfig(...))``, ``set_adapters``, ``disable_lora``, ``fuse_lora``, ``delete_adapters``,
    ``load_lora_adapter``, ``save_lora_adapter`` and the others are diffusers' own.
    """

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Add an adapter with fresh weights, for training; all other weights are frozen.

        Args:
            adapter_config: ``peft.LoraConfig``; ``target_modules`` names linear layers by the ends of their names, such as
                "attn.qkv"; None = those that ``lora_targets`` lists.
            adapter_name: no other adapter's.

        Raises:
            UserError: peft is not installed, a rank below 1, a target that is no linear layer, or the name is taken.
        """
        require_peft()
        if adapter_name in getattr(self, "peft_config", {}):
            raise UserError(f"adapter {adapter_name!r} is there already: give another name, or delete it first")
        rank = getattr(adapter_config, "r", 1)
        if not isinstance(rank, int) or rank < 1:
            raise UserError(f"the rank r is {rank!r}: give a whole number, at least 1")
        if getattr(adapter_config, "target_modules", ()) is None:
            adapter_config.target_modules = set(lora_targets(self))  # type: ignore[arg-type]
        targets = getattr(adapter_config, "target_modules", None)
        if isinstance(targets, list | set | tuple):
            check_targets(self, targets)  # type: ignore[arg-type]
        super().add_adapter(adapter_config, adapter_name)


def linear_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name -> linear layer; one that has adapters is the layer itself, under its own name."""
    for name, module in network.named_modules():
        layer = getattr(module, "base_layer", module)
        if isinstance(layer, nn.Linear) and not _INSIDE_ADAPTER.search(f".{name}"):
            yield name, layer


def lora_targets(network: nn.Module) -> list[str]:
    """Ends of names of the layers that see tokens: those of attention and MLP in the blocks, not the modulation."""
    inside = [name.split(".", 2)[2] for name, _ in linear_layers(network) if name.startswith("blocks.")]
    return list(dict.fromkeys(name for name in inside if not name.startswith("modulation")))


def check_targets(network: nn.Module, targets: Iterable[str]) -> None:
    """Raise UserError for a target that is the end of no linear layer's name: peft ignores one beside others that are."""
    names = [name for name, _ in linear_layers(network)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            ends = dict.fromkeys([*lora_targets(network), *names])
            raise unknown_name("LoRA target", target, ends)


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], where: object) -> dict[str, int]:
    """Compare LoRA weights with the layers they are for, before anything is changed.

    Args:
        network: the transformer.
        weights: "<layer>.lora_A.weight" (rank, in) and "<layer>.lora_B.weight" (out, rank).
        where: what messages call them, such as their file.

    Returns:
        The rank of each layer, by name.

    Raises:
        UserError: no weights, other ones, or ones of another model.
    """
    layers, ranks = dict(linear_layers(network)), dict[str, int]()
    if not weights:
        raise UserError(f"{where}: holds no LoRA weights")
    for name, weight in weights.items():
        match = _WEIGHT.fullmatch(name)
        if match is None:
            raise UserError(
                f"{where}: holds {name!r}, which is no weight of a LoRA (<layer>.lora_A.weight, .lora_B.weight)"
            )
        layer = layers.get(match[1])
        if layer is None:
            raise UserError(f"{where}: is of another model: this one has no linear layer {match[1]!r}")
        other = f"{match[1]}.lora_{'B' if match[2] == 'A' else 'A'}.weight"
        if other not in weights:
            raise UserError(f"{where}: holds {name!r} and lacks {other!r}")
        if match[2] == "B":
            continue
        a, b = tuple(weight.shape), tuple(weights[other].shape)
        rank = a[0] if len(a) == 2 else 0
        if rank < 1 or a != (rank, layer.in_features) or b != (layer.out_features, rank):
            there, here = (
                " and ".join(" x ".join(map(str, shape)) for shape in shapes)
                for shapes in ((a, b), (("rank", layer.in_features), (layer.out_features, "rank")))
            )
            raise UserError(f"{where}: is of another model: {match[1]} is {there} there, and {here} here")
        ranks[match[1]] = rank
    return ranks
