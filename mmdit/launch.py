"""Processes for work other than training, by Lightning's Fabric: one command for one core, many GPUs or many nodes."""

from __future__ import annotations

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mmdit.errors import UserError, one_line


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
