"""Whether a batch can be meant: beside the split that it is drawn from, and the memory of this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from mmdit.data.datamodule import BatchReader
from mmdit.errors import UserError
from mmdit.sources.processes import physical_memory

logger = logging.getLogger(__name__)

# A step over a few pictures may well take each many times, with other noise and at other times t; far more is a slip.
MAX_PASSES = 100


def check_batch(batch_size: int, train: Dataset[Any], split: str, *, num_nodes: int = 1) -> None:
    """Judge ``data.batch_size`` before a step is taken. Batches are always full: one larger than the split repeats samples.

    Args:
        batch_size: over all processes.
        train: what is drawn from; split: its name.
        num_nodes: machines that share a batch.

    Raises:
        UserError: more than ``MAX_PASSES`` passes over the split in a step, or data that this machine's memory can't hold.
    """
    count = len(train)  # type: ignore[arg-type]
    there = f"split {split!r} has {count} samples, mirrored views included"
    if batch_size > MAX_PASSES * count:
        raise UserError(
            f"data.batch_size is {batch_size}: {there}, and a step would go over them {batch_size // count} times: give at "
            f"most {MAX_PASSES * count}; {count} takes each once"
        )
    memory, needed = physical_memory(), sample_bytes(train) * batch_size // num_nodes
    if memory is not None and needed > memory:
        raise UserError(
            f"data.batch_size is {batch_size}: the data alone of such a batch take {needed / 1e9:.1f} GB, and this machine has "
            f"{memory / 1e9:.1f} GB: give far less, and trainer.accumulate_grad_batches for more samples in a step"
        )
    if batch_size > count:
        logger.warning("data.batch_size is %d: %s, so a step takes some more than once", batch_size, there)


def sample_bytes(dataset: Any) -> int:
    """Bytes of the tensors of one sample."""
    reader = BatchReader(dataset) if hasattr(dataset, "read_batch") else None
    return _bytes(dataset[0] if reader is None else reader.__getitems__([0]))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
