"""Fully sharded training (FSDP2): each process keeps a slice of every weight, gradient and optimizer state.

Sharded weights are DTensors. Plain tensors pass through every function here, so callers treat both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    import lightning.pytorch as pl


def local_part(tensor: Tensor) -> Tensor:
    """This process's slice of a sharded tensor, sharing its memory; a plain tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process of its mesh must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Cut ``whole``, which every process holds, as ``like`` is sharded; onto its device and dtype."""
    whole = whole.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather sharded tensors one by one, to the CPU, and keep them where ``keep``; plain tensors are taken as they are."""
    gathered = {}
    for name, tensor in tensors.items():
        whole = whole_tensor(tensor.detach())
        if keep:
            gathered[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return gathered


def shard_module(module: pl.LightningModule, network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard ``module`` over ``mesh``: each block of ``network`` is gathered when it runs, the rest for a whole step.

    Under mixed precision the blocks' weights are gathered in bfloat16 and their gradients averaged in float32; the rest,
    embeddings and heads, stays in float32. Inputs are left to autocast: timesteps would lose their last digits.
    """
    mixed = module.trainer.precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    blocks: Any = getattr(network, "blocks", ())
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "attention_map")
    # Also after a validation step, which no backward pass follows: between steps every weight is a slice.
    fully_shard(
        module, mesh=mesh, reshard_after_forward=True, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False)
    )
    for method in ("training_step", "validation_step"):
        register_fsdp_forward_method(module, method)
