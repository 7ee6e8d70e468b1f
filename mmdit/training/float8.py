"""Matrix products in FP8 by torchao: weights, inputs and gradients are scaled and cast for each product, the rest stays."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from mmdit.errors import UserError

# Ada and Hopper are the first with FP8 matrix products; their operands need dimensions that are multiples of 16.
MINIMUM_CAPABILITY = (8, 9)
MULTIPLE = 16


def float8_problem() -> str | None:
    """Why this machine can't multiply in FP8, or None where it can."""
    if not torch.cuda.is_available():
        return "no CUDA GPU was found"
    if torch.version.hip is None and torch.cuda.get_device_capability() < MINIMUM_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"{torch.cuda.get_device_name()} has compute capability {found}, FP8 needs 8.9 or newer"
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed: pip install 'multimodal-dit[float8]'"
    return None


def is_float8_layer(module: nn.Module, name: str) -> bool:
    """The large products: linear layers of the blocks that see tokens. adaLN's see one vector per sample."""
    if not isinstance(module, nn.Linear) or "modulation" in name or "blocks." not in name:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def convert_to_float8(network: nn.Module) -> None:
    """Replace layers in place; names and weights stay, so checkpoints and export are those of a plain run.

    Raises UserError where this machine can't.
    """
    problem = float8_problem()
    if problem is not None:
        raise UserError(f"trainer.float8: {problem}; leave it out, bf16-mixed is the fastest here")
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(network, module_filter_fn=is_float8_layer)
