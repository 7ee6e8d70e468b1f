"""``mmdit bench`` on the CPU; beside the official code where MMDIT_OFFICIAL_MMGEN names a checkout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmdit.cli.main import main

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/debug.yaml")
SMALL = ["--latent_size", "8", "--num_classes", "3"]


def test_training_is_timed(tmp_path, capsys):
    report = tmp_path / "out/train.json"
    arguments = [
        "--num_steps",
        "2",
        "--num_warmup",
        "1",
        "--random_data",
        "true",
        "--trainer.accumulate_grad_batches",
        "2",
    ]
    assert main(["bench", "train", "--config", CONFIG, *SMALL, *arguments, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    ours = found["mmdit"]
    assert ours["images_per_second"] == pytest.approx(16 / ours["seconds_per_step"])
    assert ours["tflops"] == pytest.approx(ours["images_per_second"] * found["tflop_per_image"])
    assert ours["mfu"] == pytest.approx(ours["tflops"] / ours["matmul_tflops"])
    assert 0 < ours["mfu"] < 1
    assert 0 <= ours["data_wait_share"] < 1
    assert ours["peak_memory_gib"] > 0
    assert found["config"]["tokens"] == 16
    assert "mmdit: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sampling_is_timed(tmp_path):
    report = tmp_path / "sample.json"
    arguments = ["--num_images", "2", "--num_inference_steps", "2", "--report", str(report)]
    assert main(["bench", "sample", "--config", CONFIG, *SMALL, *arguments]) == 0
    ours = json.loads(report.read_text())["mmdit"]
    assert ours["seconds_per_image"] == pytest.approx(1 / ours["images_per_second"])
    assert 0 < ours["mfu"] < 1


def test_loader_is_timed(tmp_path):
    report = tmp_path / "loader.json"
    assert main(["bench", "loader", "--seconds", "0.1", "--report", str(report)]) == 0
    assert json.loads(report.read_text())["mmdit"]["samples_per_second_per_core"] > 0


def test_wrong_input(tmp_path, capsys):
    for arguments, named in (
        (["train", "--config", CONFIG, "--against", str(tmp_path)], "lacks models/sit.py"),
        (["train", "--config", CONFIG, "--num_warmup", "0"], "--num_warmup is 0: give at least 1"),
        (["train", "--config", CONFIG, "--data.batch_size", "0"], "--data.batch_size is 0: give 1 to 1000000"),
        (["train", "--config", CONFIG, "--latent_size", "0"], "--latent_size is 0: give at least 1"),
        (["train", "--config", CONFIG, "--report", str(tmp_path)], "is a folder; --report is a file"),
        (["sample", "--config", CONFIG, "--num_images", "0"], "--num_images is 0: give at least 1"),
        (["sample", "--config", CONFIG, "--num_inference_steps", "0"], "--num_inference_steps is 0: give 1 to 10000"),
        (["sample", "--config", CONFIG, "--device", "gpu7"], "--device 'gpu7' can't be used here"),
        (["sample", "--config", CONFIG, "--recipe", "teacher"], "recipe 'transformer'"),
        (["sample", "--config", CONFIG, "--trainer.precision", "int8"], "trainer.precision is 'int8'"),
        (["loader", "--batch_size", "0"], "--batch_size is 0: give 1 to 65536"),
        (["loader", "--seconds", "0"], "--seconds is 0: give a number above 0"),
        (["loader", "--split", "test"], "name your own with --data"),
        (["train", "--config", CONFIG, "--recipe", "teacher"], "recipe 'transformer'"),
        (["sample", "--config", CONFIG, "--against", str(tmp_path)], "no checkout of the official MMGen code"),
        (["loader", "--data", str(tmp_path)], "latents.json"),
    ):
        assert main(["bench", *arguments]) == 2
        said = capsys.readouterr().err
        assert named in said
        assert said.count("\n") == 1


@pytest.mark.skipif("MMDIT_OFFICIAL_MMGEN" not in os.environ, reason="MMDIT_OFFICIAL_MMGEN names no checkout")
@pytest.mark.parametrize("what", ["train", "sample"])
def test_official_code_on_the_same_work(tmp_path, what):
    report = tmp_path / "report.json"
    arguments = {
        "train": ["--num_steps", "2", "--num_warmup", "1", "--random_data", "true"],
        "sample": ["--num_images", "2"],
    }
    checkout = ["--against", os.environ["MMDIT_OFFICIAL_MMGEN"], "--report", str(report)]
    assert main(["bench", what, "--config", CONFIG, *SMALL, *arguments[what], *checkout]) == 0
    found = json.loads(report.read_text())
    assert found["official"]["images_per_second"] > 0
    assert found["speedup"] == pytest.approx(
        found["mmdit"]["images_per_second"] / found["official"]["images_per_second"]
    )
