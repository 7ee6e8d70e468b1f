"""Points of a learning curve: measured once each, with the weights that a checkpoint calls averaged, and their cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmdit.training.checkpoints import read_checkpoint
from mmdit.training.config import TrainingConfig
from mmdit.training.measured_points import MeasuredPoints
from mmdit.training.recipes import build_run
from mmdit.training.run import fit


def test_points_of_a_run_and_of_its_second_half(tmp_path: Path, tiny_config: Callable[..., TrainingConfig]) -> None:
    """Of two batches a step; what a point does to the random numbers of the process changes nothing."""
    config = tiny_config(max_steps=4, checkpoint_every=2)
    config.trainer.accumulate_grad_batches = 2

    def run(folder: Path) -> list[Any]:
        found: list[Any] = []

        def measure(step: int, cost: Any, weights: Any) -> None:
            torch.rand(3)
            found.append((step, cost, {name: tensor.clone() for name, tensor in weights.items()}))

        built = build_run(config)
        built.callbacks.append(MeasuredPoints([2, 4], measure))
        assert fit(built, config.trainer, config.ema, folder, "auto") is not None
        assert found
        return found

    points = run(tmp_path / "whole")
    assert [step for step, _, _ in points] == [2, 4]
    for step, _, weights in points:
        averaged = read_checkpoint(tmp_path / f"whole/checkpoints/step={step:08d}.ckpt")["state_dict"]
        assert all(torch.equal(tensor, averaged[f"network.{name}"]) for name, tensor in weights.items())
    first, second = (cost for _, cost, _ in points)
    assert 0 < first.processor_seconds < second.processor_seconds
    assert 0 < first.wall_seconds < second.wall_seconds

    half = tmp_path / "half/checkpoints"
    half.mkdir(parents=True)
    (half / "step=00000002.ckpt").write_bytes((tmp_path / "whole/checkpoints/step=00000002.ckpt").read_bytes())
    ((step, cost, weights),) = run(tmp_path / "half")
    assert step == 4
    assert cost.processor_seconds > first.processor_seconds
    assert all(torch.equal(tensor, points[1][2][name]) for name, tensor in weights.items())
