"""A run of a few steps that needs nothing on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmdit.training.config import (
    AlignmentConfig,
    DataConfig,
    EMAConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    TrainerConfig,
    TrainingConfig,
)


@pytest.fixture
def tiny_config() -> Callable[..., TrainingConfig]:
    """Build a configuration; keyword arguments replace sections."""

    def build(max_steps: int = 6, checkpoint_every: int = 2, **sections: Any) -> TrainingConfig:
        trainer = TrainerConfig(
            max_steps=max_steps,
            checkpoint_every=checkpoint_every,
            validate_every=0,
            log_every=2,
            accelerator="cpu",
            devices=1,
        )
        defaults: dict[str, Any] = {
            "model": ModelConfig(size="debug"),
            "data": DataConfig(batch_size=4),
            "objective": ObjectiveConfig(prediction="sample", timesteps="mixed"),
            "alignment": AlignmentConfig(depth=1, hidden_size=16),
            "optimizer": OptimizerConfig(name="muon", lr=1e-3, warmup_steps=1, schedule="linear"),
            "trainer": trainer,
            "ema": EMAConfig(decay=0.9),
            "preview": PreviewConfig(num_samples=0),
        }
        return TrainingConfig(**{**defaults, **sections})

    return build
