from __future__ import annotations

import json
import os

import numpy as np
import pytest

from mmdit.cli.samples import ema_of, process_place
from mmdit.errors import UserError


@pytest.fixture
def command(tiny_pipeline_dir):
    return ("samples", "--output", "s", "--model", tiny_pipeline_dir, "--num_samples", 5, "--block_size", 2,
            "--num_inference_steps", 2, "--batch_size", 2)  # fmt: skip


def test_two_processes_and_a_restart(mmdit, command, tmp_path, monkeypatch):
    alone = mmdit(*command, "--output", "alone")
    assert alone.code == 0, alone.err
    assert alone.out.splitlines()[-1] == "alone/samples_5x64x64x3.npz"
    settings = json.loads((tmp_path / "alone" / "samples.json").read_text())["settings"]
    assert (settings["process"], settings["dtype"], settings["labels"]) == ("SDE", "float32", "balanced")
    assert settings["ema"] is None

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = mmdit(*command)
    assert "2 of 3 blocks are other processes'" in second.out
    made = tmp_path / "s" / "blocks" / "00001.npy"
    stamp = made.stat().st_mtime_ns
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "process 0 of 1: block 2 of 2" in mmdit(*command).out
    assert made.stat().st_mtime_ns == stamp
    with (
        np.load(tmp_path / "s/samples_5x64x64x3.npz") as ours,
        np.load(tmp_path / "alone/samples_5x64x64x3.npz") as one,
    ):
        np.testing.assert_array_equal(ours["arr_0"], one["arr_0"])
        assert ours["arr_1"].tolist() == [0, 1, 2, 3, 4]
    result = mmdit(*command, "--scheduler", "euler")
    assert result.code == 2
    assert "scheduler was 'euler_maruyama', now 'euler'" in result.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--num_samples", 0), "num_samples is 0"),
        (("--batch_size", 0), "--batch_size is 0"),
        (("--scheduler", "eular"), "did you mean 'euler'"),
        (("--num_inference_steps", 0), "--num_inference_steps is 0"),
    ],
)
def test_samples_refuses(mmdit, command, arguments, expected):
    result = mmdit(*command, *arguments)
    assert result.code == 2
    assert expected in result.error


def test_place_of_a_process(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    assert process_place() == (0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "9")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert process_place() == (9, 16, 1)
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(UserError, match="give whole numbers"):
        process_place()


def test_a_process_started_by_hand_in_an_allocation_is_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    # salloc --ntasks=4, or a batch script: the allocation's variables, and no step of srun's
    allocation = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in allocation.items():
        monkeypatch.setenv(name, value)
    assert process_place() == (0, 1, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # the shell that salloc itself starts as a step
    assert process_place() == (0, 1, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert process_place() == (0, 4, 0)
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert process_place() == (2, 4, 0)


def test_averaged_weights_are_read_from_the_run(tmp_path):
    pipeline = tmp_path / "run" / "pipeline"
    pipeline.mkdir(parents=True)
    assert ema_of(str(pipeline)) is None
    for text, expected in (("ema:\n  decay: 0.999\n", True), ("ema: null\n", False), ("seed: 0\n", None)):
        (tmp_path / "run" / "config.yaml").write_text(text)
        assert ema_of(str(pipeline)) is expected
    assert ema_of("scenes64") is None
