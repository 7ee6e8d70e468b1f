from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmdit.errors import UserError
from mmdit.training.config import EMAConfig, TrainingConfig
from mmdit.training.ranges import check_ranges
from mmdit.training.recipes import build_run
from mmdit.training.run import make_trainer


def _with(key: str, value: Any) -> TrainingConfig:
    config = TrainingConfig()
    section, _, name = key.rpartition(".")
    if not section:
        return replace(config, **{name: value})
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("seed", -1, "give 0 to 9223372036854775807"),
        ("data.num_workers", -1, "give 0 or more"),
        ("model.class_dropout_prob", 2.0, "give 0 to 1"),
        ("data.batch_size", 0, "give 1 or more"),
        ("model.patch_size", 0, "give 1 or more"),
        ("model.mlp_ratio", -1.0, "give a number above 0"),
        ("objective.max_condition_time", 5.0, "give 0 to 1"),
        ("optimizer.lr", 0.0, "give a number above 0"),
        ("optimizer.warmup_steps", -5, "give 0 or more"),
        ("trainer.max_steps", 0, "give 1 or more"),
        ("trainer.log_every", 0, "give 1 or more"),
        ("trainer.accumulate_grad_batches", 0, "give 1 or more"),
        ("trainer.gradient_clip_val", 0.0, "give a number above 0"),
        ("ema.decay", 2.0, "give 0 to 1"),
        ("ema.decay", float("nan"), "give 0 to 1"),
    ],
)
def test_numbers_out_of_range(key: str, value: float, right: str) -> None:
    with pytest.raises(UserError, match=f"^{key} is {value}: {right}$"):
        build_run(_with(key, value))


def test_betas_and_devices_that_nothing_can_take() -> None:
    with pytest.raises(UserError, match=r"^optimizer.betas are \[0.9, 1.5\]: give two numbers from 0 to below 1$"):
        check_ranges(_with("optimizer.betas", (0.9, 1.5)))
    config = _with("trainer.devices", "some")
    with pytest.raises(UserError, match=r"trainer settings do not fit this machine: .*devices"):
        make_trainer(replace(config.trainer, accelerator="cpu"), None, None, build_run(config).data, [])


def test_defaults_bounds_and_null_are_in_range() -> None:
    check_ranges(TrainingConfig())
    check_ranges(replace(TrainingConfig(), ema=None))
    check_ranges(replace(TrainingConfig(), ema=EMAConfig(1.0)))
    check_ranges(_with("trainer.gradient_clip_val", None))
    check_ranges(_with("trainer.max_steps", 1))
