"""Exponential moving average of the weights, swapped in for validation, previews and export; sharded where they are.

Lightning's WeightAveraging copies the module before it is moved to its device or sharded; this one starts afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmdit.training.sharding import local_part, shard_like, whole_tensors

# Keys of a checkpoint: on the disk, and once it is loaded.
TRAINED, AVERAGE = "current_model_state", "averaged_model_state"


def trained_weights_first(checkpoint: dict[str, Any]) -> None:
    """Of a checkpoint with an average, make the weights in training the ``state_dict`` again: a run goes on from these.

    The module asks for it, so that it holds for a run without an average too.
    """
    if TRAINED in checkpoint:
        checkpoint[AVERAGE] = checkpoint["state_dict"]
        checkpoint["state_dict"] = checkpoint.pop(TRAINED)


def ema_decay(num_averaged: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)): the average forgets its random start (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


def trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter that the optimizer changes."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class EMA(Callback):
    """Average of the weights that are trained; one that is frozen would be its own.

    A checkpoint holds the average as ``state_dict``, the weights in training as ``current_model_state`` and the number of
    updates in ``averaging_state``, all whole, so that any number of processes and any strategy can go on from it.

    Args:
        decay: final decay, from 0 to below 1.
        warmup: begin with a smaller one (``ema_decay``), and with the weights after the first step.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.num_averaged = 0
        self.average: dict[str, Tensor] = {}  # by parameter name; a shard where the parameter is one
        self._restored: Mapping[str, Tensor] = {}
        self._latest_update_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in trained(pl_module).items():
            start = self._restored.get(name)
            self.average[name] = (
                parameter.detach().clone() if start is None else shard_like(start, parameter.detach()).clone()
            )
        self._restored = {}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Move the average towards ``parameters``; with a warm-up the first update copies them."""
        averaged = [local_part(self.average[name]) for name in parameters]
        current = [local_part(parameter.detach()) for parameter in parameters.values()]
        decay = self.decay
        if self.warmup:
            decay = 0.0 if self.num_averaged == 0 else ema_decay(self.num_averaged, self.decay)
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self.num_averaged += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:  # not in the middle of an accumulation
            self.update(trained(pl_module))
            self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        for name, parameter in trained(pl_module).items():
            if name in self.average:
                ours, theirs = local_part(self.average[name]), local_part(parameter.detach())
                kept = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(kept)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in trained(pl_module).items():
            local_part(parameter.detach()).copy_(local_part(self.average[name]))

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_step = int(state_dict["latest_update_step"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        average = whole_tensors(self.average, keep=trainer.is_global_zero)
        checkpoint[TRAINED] = checkpoint["state_dict"]
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.num_averaged)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A checkpoint without an average (a run with ema: null) starts the average from the weights.
        self._restored = checkpoint.get(AVERAGE, checkpoint["state_dict"])
        if AVERAGE in checkpoint:
            self.num_averaged = int(checkpoint["averaging_state"]["n_averaged"])
        if checkpoint["global_step"] >= trainer.max_steps:  # nothing is left to train: the average is what is exported
            trainer.strategy.load_model_state_dict({"state_dict": self._restored})


def exported_weights(trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
    """Name -> weight of ``pl_module.network`` as a run that ended now would export it: averaged where there is an average."""
    average = next((callback.average for callback in trainer.callbacks if isinstance(callback, EMA)), {})  # type: ignore
    own = {name.removeprefix("network."): tensor for name, tensor in average.items()}
    weights = {**pl_module.network.state_dict(), **own}
    return whole_tensors(weights, keep=trainer.is_global_zero)
