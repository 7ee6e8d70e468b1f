"""The moving average against its recurrence."""

from __future__ import annotations

import pytest
import torch

from mmdit.training.ema import EMA, ema_decay


def test_decay_warms_up_to_its_final_value() -> None:
    assert ema_decay(0, 0.99) == pytest.approx(0.1)
    assert ema_decay(8, 0.99) == pytest.approx(0.5)
    assert ema_decay(10_000, 0.99) == 0.99


def test_average_follows_the_recurrence() -> None:
    ema = EMA(decay=0.6)
    ema.average = {"w": torch.zeros(3)}
    ema.update({"w": torch.full((3,), 5.0)})
    expected = torch.full((3,), 5.0)  # the first update copies
    torch.testing.assert_close(ema.average["w"], expected)
    for n in range(1, 8):
        ema.update({"w": torch.full((3,), float(n))})
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    torch.testing.assert_close(ema.average["w"], expected)
    assert ema.num_averaged == 8


def test_without_a_warm_up_the_average_has_its_decay_from_the_first_step() -> None:
    """The official codes' recurrence: a copy of the first weights, then decay x average + (1 - decay) x weights."""
    ema, expected = EMA(decay=0.9, warmup=False), torch.ones(3)
    ema.average = {"w": torch.ones(3)}
    for n in range(5):
        ema.update({"w": torch.full((3,), float(n))})
        expected = 0.9 * expected + 0.1 * n
    torch.testing.assert_close(ema.average["w"], expected)
