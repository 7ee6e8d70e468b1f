"""Batches for training: the order is a function of (seed, step), so a run can go on exactly where it was."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from mmdit.errors import UserError

logger = logging.getLogger(__name__)

# What the order of the samples follows from -> what users call it.
ORDER = {"batch_size": "data.batch_size", "seed": "seed"}


def numbered_generator(seed: int, number: int, rank: int = 0) -> torch.Generator:
    """The generator of a numbered thing, such as a step or a pass over the data, in a run of any seed from 0 to 2^63 - 1.

    ``rank``: of a process that draws by itself. The generator reads 32 bits of its seed: ranks differ in these.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + number + rank * 998_244_353) % 2**64)


class StepSampler(Sampler[list[Any]]):
    """Batches of indices for steps ``start`` … ``num_batches`` of a run: shuffled passes over the data, without end.

    The passes are joined, so every batch is full whatever the size of the data. Process ``rank`` of ``world_size`` gets
    every world_size-th sample of the global batch.

    Args:
        num_samples: size of the data set.
        batch_size: of the global batch.
        num_batches: batches in the whole run.
        seed: order; pass p is shuffled with (seed, p).
        with_positions: yield (index, position in the run), for data that are drawn anew each time a sample is met.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        num_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        with_positions: bool = False,
    ) -> None:
        self.num_samples, self.batch_size, self.num_batches, self.seed = num_samples, batch_size, num_batches, seed
        self.rank, self.world_size, self.with_positions = rank, world_size, with_positions
        self.start = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Any]]:
        cached: tuple[int, list[int]] = (-1, [])
        for batch in range(self.start, self.num_batches):
            indices: list[Any] = []
            for position in range(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.world_size):
                epoch, offset = divmod(position, self.num_samples)
                if cached[0] != epoch:
                    generator = numbered_generator(self.seed, epoch)
                    cached = (epoch, torch.randperm(self.num_samples, generator=generator).tolist())
                index = cached[1][offset]
                indices.append((index, position) if self.with_positions else index)
            yield indices


class BatchReader(Dataset):
    """Lets a loader fetch whole batches from a dataset that has ``read_batch``, such as ``LatentShards``.

    A dataset with ``takes_positions`` may be asked for (index, position) pairs: ``read_batch(indices, positions)``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[Any]) -> Any:
        if isinstance(indices[0], tuple):
            return self.dataset.read_batch(*zip(*indices, strict=True))
        return self.dataset.read_batch(indices)


@dataclass(frozen=True)
class _Collate:
    """PyTorch's own; a dictionary is a batch already. ``prepare`` is done to the batch in the process that loads it."""

    prepare: Callable[[Any], Any] | None = None

    def __call__(self, samples: Any) -> Any:
        batch = samples if isinstance(samples, dict) else default_collate(samples)
        return batch if self.prepare is None else self.prepare(batch)


def make_loader(
    dataset: Dataset[Any],
    indices: list[int] | None = None,
    prepare: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> DataLoader[Any]:
    """Build a loader over ``dataset``, or over its ``indices``, that reads whole batches where the dataset can.

    ``prepare``: what is done to each batch, in the process that loads it; None = nothing.
    """
    source = BatchReader(dataset) if hasattr(dataset, "read_batch") else dataset
    source = source if indices is None else Subset(source, indices)
    return DataLoader(source, collate_fn=_Collate(prepare), **settings)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Loader processes get the signals of a cluster or of Ctrl-C too, and must last until the step under way is done."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class ResumableDataModule(LightningDataModule):
    """Train and validation loaders over map-style datasets, thin.

    Args:
        train, val: datasets of dictionaries; ``val`` may be None.
        batch_size: of the global batch.
        num_batches: batches in the whole run, accumulation included.
        num_workers: loader processes per training process.
        seed: order of the data.
        max_val_samples: validation uses this many samples at most.
        prepare: what is done to each batch in the process that loads it, such as tokenizing; None = nothing.
    """

    def __init__(
        self,
        train: Dataset[dict[str, Any]],
        val: Dataset[dict[str, Any]] | None,
        *,
        batch_size: int,
        num_batches: int,
        num_workers: int = 0,
        seed: int = 0,
        max_val_samples: int = 256,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}: give at least 1")
        if len(train) == 0:  # type: ignore[arg-type]
            raise UserError("the training split has no samples")
        self.train, self.val = train, val
        self.batch_size, self.num_batches, self.seed = batch_size, num_batches, seed
        self.max_val_samples = max_val_samples
        self.loader_settings: dict[str, Any] = {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "worker_init_fn": _leave_signals_to_the_trainer,
            "pin_memory": torch.cuda.is_available(),
            "prepare": prepare,
        }
        self.batches_seen = 0

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise UserError(f"data.batch_size {self.batch_size} is not a multiple of the {world_size} processes")
        sampler = StepSampler(
            len(self.train),  # type: ignore[arg-type]
            self.batch_size,
            num_batches=self.num_batches,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            with_positions=getattr(self.train, "takes_positions", False),
        )
        sampler.start = self.batches_seen
        return make_loader(self.train, batch_sampler=sampler, **self.loader_settings)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.val is None or len(self.val) == 0:  # type: ignore[arg-type]
            return []
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        count = min(len(self.val), self.max_val_samples)  # type: ignore[arg-type]
        # As many on each process: sharded weights are gathered together, and Lightning refuses an empty loader beside others.
        count -= count % world_size if count > world_size else 0
        indices = list(range(rank, count, world_size)) or [rank % count]
        return make_loader(self.val, indices, batch_size=max(1, self.batch_size // world_size), **self.loader_settings)

    def state_dict(self) -> dict[str, Any]:
        seen = self.trainer.lightning_module.batches_seen if self.trainer else self.batches_seen
        return {"batches_seen": seen, **self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches of a checkpoint. Says so where their order was another one."""
        self.batches_seen = int(state_dict["batches_seen"])
        before = {key: state_dict.get(key, now) for key, now in self._order.items()}  # older ones don't say
        if changed := [f"{ORDER[key]} was {before[key]}" for key, now in self._order.items() if before[key] != now]:
            logger.warning(
                "resumed where %s: from here on the samples come in another order, as if it had always been so",
                " and ".join(changed),
            )

    @property
    def _order(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "seed": self.seed}
