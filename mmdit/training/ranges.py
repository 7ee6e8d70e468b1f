"""What the numbers of a training configuration may be, refused before anything is built or written."""

from __future__ import annotations

import math
from typing import Any

from mmdit.errors import UserError

# key -> (least, most, whether these two are allowed themselves); null passes where the key's type takes it
_RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**63 - 1, True),
    "data.batch_size": (1, math.inf, True),
    "data.num_workers": (0, math.inf, True),
    "model.hidden_size": (1, math.inf, True),
    "model.depth": (1, math.inf, True),
    "model.num_heads": (1, math.inf, True),
    "model.mlp_ratio": (0, math.inf, False),
    "model.patch_size": (1, math.inf, True),
    "model.class_dropout_prob": (0, 1, True),
    "objective.max_condition_time": (0, 1, True),
    "alignment.weight": (0, math.inf, True),
    "alignment.hidden_size": (1, math.inf, True),
    "optimizer.lr": (0, math.inf, False),
    "optimizer.muon_lr": (0, math.inf, False),
    "optimizer.weight_decay": (0, math.inf, True),
    "optimizer.warmup_steps": (0, math.inf, True),
    "optimizer.decay_share": (0, 1, True),
    "trainer.max_steps": (1, math.inf, True),
    "trainer.max_hours": (0, math.inf, False),
    "trainer.checkpoint_every": (1, math.inf, True),
    "trainer.validate_every": (0, math.inf, True),
    "trainer.log_every": (1, math.inf, True),
    "trainer.num_nodes": (1, math.inf, True),
    "trainer.accumulate_grad_batches": (1, math.inf, True),
    "trainer.gradient_clip_val": (0, math.inf, False),
    "ema.decay": (0, 1, True),
    "preview.num_samples": (0, math.inf, True),
    "preview.num_measured": (0, math.inf, True),
    "preview.num_inference_steps": (1, math.inf, True),
}

# key -> the most that can be meant: more is a slip, which would take all memory before it is noticed
_MEANT: dict[str, int] = {
    "data.batch_size": 10**7,
    "data.num_workers": 4096,
    "model.hidden_size": 2**20,
    "model.depth": 2**14,
    "model.num_heads": 2**14,
    "model.patch_size": 2**14,
    "alignment.hidden_size": 2**20,
    "trainer.max_steps": 10**8,
    "trainer.num_nodes": 2**20,
    "trainer.accumulate_grad_batches": 2**20,
    "preview.num_samples": 10**6,
    "preview.num_measured": 10**6,
    "preview.num_inference_steps": 10**4,
}


def check_ranges(config: Any) -> None:
    """Check the numbers of a ``TrainingConfig``. Raises UserError naming the key, its value and the range."""
    for key, (least, most, allowed) in _RANGES.items():
        value: Any = config
        for name in key.split("."):
            value = None if value is None else getattr(value, name)
        if value is None:
            continue
        if not (least <= value <= most if allowed else least < value < most):
            upper = "or more" if most == math.inf else f"to {most}"
            raise UserError(f"{key} is {value}: give " + (f"{least} {upper}" if allowed else f"a number above {least}"))
        if value > _MEANT.get(key, math.inf):
            raise UserError(f"{key} is {value}: give at most {_MEANT[key]}")
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise UserError(f"optimizer.betas are {list(config.optimizer.betas)}: give two numbers from 0 to below 1")
