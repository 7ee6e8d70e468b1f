"""Signals at awkward moments."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmdit.training.signals import leaving_quietly
from mmdit.training.stopping import StopGracefully

WORKER = """
import os, signal, sys, threading, time
from types import SimpleNamespace
import torch.distributed as dist
from mmdit.training.stopping import StopGracefully

dist.init_process_group("gloo")
trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=1, should_stop=False, limit_val_batches=1.0)
with StopGracefully() as stop:
    stop.on_train_start(trainer, None)
    if dist.get_rank() == 0:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        time.sleep(1.5)  # the other process waits for this one, and gets its signal meanwhile
    stop.on_train_batch_end(trainer, None, None, None, 0)
    first = trainer.should_stop
    stop.on_train_batch_end(trainer, None, None, None, 1)
    print("stopped", first, trainer.should_stop, stop.stopped_by == signal.SIGTERM, flush=True)
"""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """As in a terminal: a process that a shell starts in the background ignores SIGINT."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


def test_a_signal_while_waiting_for_the_others_is_not_lost(tmp_path: Path, processes: Any) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    children = processes.start_group([str(script)], 2)
    assert [processes.wait(child) for child in children] == [0, 0], children[0].text + children[1].text
    for child in children:
        assert "stopped False True True" in child.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_cluster_may_send_its_signal_twice(number: signal.Signals) -> None:
    found = signal.getsignal(number)
    with StopGracefully() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.received == number
    assert signal.getsignal(number) is found


def test_a_second_interrupt_is_at_once() -> None:
    with StopGracefully() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_clusters_signal_between_steps_ends_well(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    found = signal.getsignal(number)

    def run() -> None:
        with StopGracefully() as stop:  # within it the run's own handlers count
            signal.raise_signal(number)
            assert stop.received == number
        signal.raise_signal(number)

    with pytest.raises(SystemExit) as left, leaving_quietly():
        run()
    assert left.value.code == 0
    assert f"stopped by {number.name} between steps: go on with --resume auto" in capsys.readouterr().err
    assert signal.getsignal(number) is found


def test_an_interrupt_between_steps_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), leaving_quietly():
        signal.raise_signal(signal.SIGINT)
