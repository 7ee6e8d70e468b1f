"""The order of the data is a function of (seed, step)."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
import torch

from mmdit.data.datamodule import ResumableDataModule, StepSampler
from mmdit.data.synthetic import SyntheticLatents
from mmdit.errors import UserError


def test_every_pass_visits_every_sample_once_and_passes_differ() -> None:
    flat = [i for batch in StepSampler(10, 4, num_batches=5, seed=3) for i in batch]
    assert Counter(flat[:10]) == Counter(range(10))
    assert Counter(flat[10:20]) == Counter(range(10))
    assert flat[:10] != flat[10:20]


def test_batches_are_full_even_where_the_data_is_smaller() -> None:
    batches = list(StepSampler(3, 8, num_batches=2, seed=0))
    assert [len(batch) for batch in batches] == [8, 8]
    assert set(batches[0]) == {0, 1, 2}


def test_starting_later_continues_the_same_order() -> None:
    whole = list(StepSampler(10, 4, num_batches=9, seed=1))
    resumed = StepSampler(10, 4, num_batches=9, seed=1)
    resumed.start = 5
    assert list(resumed) == whole[5:]


def test_longer_runs_begin_alike_and_seeds_differ() -> None:
    assert list(StepSampler(10, 4, num_batches=20, seed=1))[:9] == list(StepSampler(10, 4, num_batches=9, seed=1))
    assert list(StepSampler(10, 4, num_batches=9, seed=2)) != list(StepSampler(10, 4, num_batches=9, seed=1))


def test_processes_share_the_global_batch() -> None:
    whole = list(StepSampler(10, 4, num_batches=6, seed=1))
    parts = [list(StepSampler(10, 4, num_batches=6, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert parts[0][step] == batch[0::2]
        assert parts[1][step] == batch[1::2]


def test_data_module_state_moves_the_start() -> None:
    data = ResumableDataModule(SyntheticLatents(2, 8), None, batch_size=4, num_batches=6)
    data.load_state_dict({"batches_seen": 2})
    fresh = ResumableDataModule(SyntheticLatents(2, 8), None, batch_size=4, num_batches=6)
    resumed, whole = list(data.train_dataloader()), list(fresh.train_dataloader())
    assert len(whole) == 6
    assert [batch["id"] for batch in resumed] == [batch["id"] for batch in whole[2:]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_do_not_change_the_order(num_workers: int) -> None:
    data = ResumableDataModule(SyntheticLatents(2, 8), None, batch_size=4, num_batches=3, num_workers=num_workers)
    batches = list(data.train_dataloader())
    expected = [SyntheticLatents(2, 8)[i]["id"] for i in next(iter(StepSampler(8, 4, num_batches=3, seed=0)))]
    assert batches[0]["id"] == expected
    assert batches[0]["moments"].shape == (4, 2, 8, 8, 8)
    assert batches[0]["present"].dtype == torch.bool


def test_workers_outlast_the_signals_that_end_a_run() -> None:
    """SLURM signals every process of a job; the trainer finishes its step, for which it may need another batch."""
    data = ResumableDataModule(SyntheticLatents(2, 8), None, batch_size=4, num_batches=6, num_workers=1)
    batches = iter(data.train_dataloader())
    next(batches)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(batches._workers[0].pid, number)  # type: ignore[attr-defined]
    assert len(list(batches)) == 5


def test_bad_sizes_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size is 0"):
        ResumableDataModule(SyntheticLatents(2, 8), None, batch_size=0, num_batches=1)
    with pytest.raises(UserError, match="no samples"):
        ResumableDataModule(SyntheticLatents(2, 0), None, batch_size=1, num_batches=1)


def test_another_order_is_said_when_a_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def module(**settings: int) -> ResumableDataModule:
        return ResumableDataModule([{}] * 8, None, num_batches=10, **settings)

    saved = module(batch_size=4, seed=1).state_dict()
    for settings, said in (
        ({"batch_size": 4, "seed": 1}, ""),
        ({"batch_size": 2, "seed": 1}, "resumed where data.batch_size was 4: "),
        ({"batch_size": 2, "seed": 0}, "resumed where data.batch_size was 4 and seed was 1: "),
    ):
        caplog.clear()
        going_on = module(**settings)
        going_on.load_state_dict(saved | {"batches_seen": 3})
        assert going_on.batches_seen == 3
        assert caplog.text == "" if not said else said in caplog.text
    caplog.clear()
    module(batch_size=2).load_state_dict({"batches_seen": 3})  # of a version that didn't say
    assert caplog.text == ""
