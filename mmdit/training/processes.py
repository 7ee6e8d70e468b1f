"""Which process of a run this is, before Lightning has started the others."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the process of rank 0: of torchrun, of srun, of Lightning's own launcher, or the only one."""
    rank = os.environ.get("RANK")
    if rank is not None:
        return rank == "0"
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return False
    others = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in others)
