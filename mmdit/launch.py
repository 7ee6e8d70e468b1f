"""Processes that share work: those that Lightning's Fabric starts for work other than training, and what each tells all."""

from __future__ import annotations

from typing import TypeVar

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from mmdit.errors import UserError, one_line

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks, to each of them; all must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def launch(accelerator: str = "auto", devices: int = 1, num_nodes: int = 1) -> Fabric:
    """Start the other processes, which run the same command, and return this one's ``Fabric``.

    ``fabric.device`` is this process's device, ``global_rank`` and ``world_size`` its place among all, ``barrier`` waits for all.

    Raises:
        UserError: an accelerator, or more devices, than this machine has.
    """
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes)
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UserError(
            f"accelerator {accelerator!r} with {devices} devices can't be used here: {one_line(error)}"
        ) from error
    fabric.launch()
    return fabric
