"""Trains and validates a module that says what it drew, in a process of a group: python module_worker.py FOLDER."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mmdit.data.datamodule import ResumableDataModule
from mmdit.training.module import Losses, SteppedModule
from mmdit.training.optimizers import OptimizerConfig


class Parts(SteppedModule):
    """The loss of sample i is i; "odd" is a mean over those of odd i."""

    drawn: float = 0.0

    def losses(self, batch: dict[str, Any], generator: torch.Generator) -> Losses:
        values: Tensor = batch["value"] + 0 * self.network(torch.ones(1, 1)).sum()
        self.drawn = float(torch.rand((), generator=generator))
        odd = values[batch["value"] % 2 == 1].detach()
        return {"loss": values.mean(), "odd": (odd.mean(), len(odd))}


class SharedParts(Parts):
    draws_for_all = True


def samples(*values: float) -> Any:
    return [{"value": value, "id": str(value)} for value in values]


def train(folder: Path, num_processes: int = 1) -> None:
    """Write ``<kind>_<rank>.json``: the draw of the first step, and what validation logged."""
    for kind in (Parts, SharedParts):
        torch.manual_seed(0)
        module = kind(nn.Linear(1, 1), optimizer=OptimizerConfig(name="adamw"), seed=3, max_steps=1)
        data = ResumableDataModule(samples(1, 2, 3, 4), samples(1, 3, 5, 2), batch_size=2, num_batches=1)
        settings: dict[str, Any] = (
            {"strategy": "ddp", "devices": num_processes} if num_processes > 1 else {"devices": 1}
        )
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, **settings,
        )  # fmt: skip
        trainer.fit(module, data)
        drawn = module.drawn
        few = ResumableDataModule(samples(1), samples(7), batch_size=2, num_batches=1)
        trainer.limit_val_batches = 1.0
        (logged,), (of_one,) = (
            trainer.validate(module, data, verbose=False),
            trainer.validate(module, few, verbose=False),
        )
        said = {"drawn": drawn, "logged": logged, "of_one": of_one}
        (folder / f"{kind.__name__}_{os.environ.get('RANK', '0')}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2)
