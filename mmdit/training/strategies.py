"""Strategies by name: some of Lightning's own, and FSDP2 whose checkpoints are those of DDP, and of one process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from mmdit.bounds import MAX_DEVICES
from mmdit.errors import UserError, unknown_name
from mmdit.training.config import TrainerConfig
from mmdit.training.sharding import shard_like, whole_tensor, whole_tensors


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes.

    A checkpoint is whole, in one file, and the same as under DDP: a run can move between the two, and between numbers of
    processes.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        assert self.lightning_module is not None
        return whole_tensors(self.lightning_module.state_dict(), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer

        def gather(index: Any, value: Tensor) -> Tensor:
            whole = whole_tensor(value)
            return whole.cpu() if self.is_global_zero else whole.new_empty(0)

        state = optimizer.state_dict()
        return {**state, "state": _map_tensors(state["state"], gather)}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = True) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, True)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {k: shard_like(v, own[k]) if k in own else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]

            def cut(index: Any, value: Tensor, parameters: list[Tensor] = parameters) -> Tensor:
                like = parameters[index]
                return shard_like(value, like) if value.shape == like.shape else value

            optimizer.load_state_dict({**state, "state": _map_tensors(state["state"], cut)})
            _optimizer_to_device(optimizer, self.root_device)


# Of Lightning's those that train, checkpoint and export here as one process does. Those that spawn can't take a run along.
STRATEGIES: dict[str, Callable[[], str | Strategy]] = {
    **{
        name: partial(str, name)
        for name in (
            "auto",
            "ddp",
            "ddp_find_unused_parameters_false",
            "ddp_find_unused_parameters_true",
            "ddp_fork",
            "ddp_notebook",
        )
    },
    "fsdp2": FSDP2Strategy,
}


def check_processes(config: TrainerConfig) -> None:
    """Raise UserError for an unknown trainer.strategy, or trainer.devices that are no number or list of any."""
    if config.strategy not in STRATEGIES:
        raise unknown_name("trainer.strategy", config.strategy, STRATEGIES)
    given = str(config.devices).strip()
    is_count = given in ("auto", "-1") or (given.isdecimal() and 1 <= int(given) <= MAX_DEVICES)
    if not is_count and not re.fullmatch(r"(\s*\d+\s*,)+(\s*\d+)?", given):
        raise UserError(
            f"trainer.devices is {config.devices}: give how many (1 to {MAX_DEVICES}), which, as in 0,1, -1 for all, or auto"
        )


def _map_tensors(state: Mapping[Any, Mapping[str, Any]], function: Callable[[Any, Tensor], Tensor]) -> dict[Any, Any]:
    """Apply ``function(parameter's number, tensor)`` to every tensor of an optimizer's state."""
    return {
        index: {key: function(index, value) if isinstance(value, Tensor) else value for key, value in entries.items()}
        for index, entries in state.items()
    }
