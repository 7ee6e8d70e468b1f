"""Whole runs: killed and resumed, stopped by NaN, continued, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdit.data.synthetic import SyntheticLatents
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.checkpoints import find_resume, read_checkpoint
from mmdit.training.module import NonFiniteLossError
from mmdit.training.recipes import TrainingConfig, build_run
from mmdit.training.run import fit

Configure = Callable[..., TrainingConfig]
WEIGHTS = "pipeline/transformer/diffusion_pytorch_model.safetensors"
ROOT = Path(__file__).parents[2]


def run(config: TrainingConfig, output: Path, resume: str | None = None) -> Path:
    return fit(build_run(config), config.trainer, config.ema, output, resume)


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def command(output: Path, steps: int, *more: str) -> list[str]:
    arguments = ["train", "--config", str(ROOT / "configs/debug.yaml"), "--output", str(output)]
    arguments += ["--trainer.max_steps", str(steps), "--trainer.checkpoint_every", "3", "--trainer.validate_every", "0"]
    return [sys.executable, "-m", "mmdit.cli.main", *arguments, *more]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, wherever the run is by then; resume; compare every weight bit by bit."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, 40), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        command(killed, 40), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list(killed.glob("checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert list(killed.glob("checkpoints/*.ckpt"))
    subprocess.run(command(killed, 40, "--resume", "auto"), check=True, env=environment, capture_output=True)
    assert same_weights(whole / WEIGHTS, killed / WEIGHTS)
    states = [read_checkpoint(folder / "checkpoints/step=00000040.ckpt") for folder in (whole, killed)]
    for key, value in states[0]["current_model_state"].items():
        assert torch.equal(value, states[1]["current_model_state"][key]), key
    for ours, theirs in zip(*(s["optimizer_states"][0]["state"].values() for s in states), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_resuming_in_the_middle_is_exact_with_accumulation(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config(max_steps=4, checkpoint_every=2)
    config.trainer.accumulate_grad_batches = 2
    run(config, tmp_path / "whole")
    half = tmp_path / "half" / "checkpoints"
    half.mkdir(parents=True)
    checkpoint = half / "step=00000002.ckpt"
    checkpoint.write_bytes((tmp_path / "whole/checkpoints/step=00000002.ckpt").read_bytes())
    assert read_checkpoint(checkpoint)["batches_seen"] == 4
    run(config, tmp_path / "half", "auto")
    assert same_weights(tmp_path / "whole" / WEIGHTS, tmp_path / "half" / WEIGHTS)


def test_export_is_a_pipeline_with_the_averaged_weights(tmp_path: Path, tiny_config: Configure) -> None:
    folder = run(tiny_config(), tmp_path)
    pipe = MultimodalDiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    averaged = read_checkpoint(tmp_path / "checkpoints/step=00000006.ckpt")["state_dict"]
    for name, weight in pipe.transformer.state_dict().items():
        assert torch.equal(weight, averaged[f"network.{name}"]), name
    assert pipe.transformer.config.alignment_depth is None, "the projector serves training only"
    out = pipe(class_labels="class 2", num_inference_steps=1)
    assert out.depth.shape == (1, 16, 16)


def test_training_lowers_the_loss(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config(max_steps=60, checkpoint_every=60, alignment=None)
    before = build_run(config)
    after = build_run(config)
    fit(after, config.trainer, config.ema, tmp_path, None)

    def loss(module: torch.nn.Module) -> float:
        batch = next(iter(before.data.train_dataloader()))
        generators = (torch.Generator().manual_seed(seed) for seed in range(8))
        with torch.no_grad():
            return sum(float(module.eval().losses(batch, g)["loss"]) for g in generators)

    assert loss(after.module) < 0.8 * loss(before.module)


def test_non_finite_loss_names_step_samples_and_checkpoint(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config(max_steps=6, checkpoint_every=2)
    built = build_run(config)

    class Broken(SyntheticLatents):
        def __getitem__(self, index: int) -> dict[str, object]:
            item = super().__getitem__(index)
            return {**item, "moments": item["moments"] * (float("nan") if built.module.batches_seen >= 3 else 1)}

    built.data.train = Broken(4, 64, feature_dim=16)
    with pytest.raises(
        NonFiniteLossError, match=r"step 3 .*samples: synthetic-0-.*last good checkpoint: .*step=00000002"
    ):
        fit(built, config.trainer, config.ema, tmp_path, None)
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["step=00000002.ckpt"]


def test_a_run_is_not_overwritten(tmp_path: Path, tiny_config: Configure) -> None:
    run(tiny_config(), tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.glob("checkpoints/*")}
    with pytest.raises(UserError, match="--resume auto"):
        run(tiny_config(), tmp_path)
    assert kept == {path: path.read_bytes() for path in tmp_path.glob("checkpoints/*")}


def test_damaged_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_config: Configure) -> None:
    run(tiny_config(), tmp_path)
    folder = tmp_path / "checkpoints"
    older, newest = sorted(folder.glob("*.ckpt"))
    os.utime(older, (1, 1))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert find_resume("auto", folder) == older
    assert newest.name in caplog.text
    with pytest.raises(UserError, match="damaged"):
        find_resume(str(newest), folder)
    older.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        find_resume("auto", folder)
    with pytest.raises(UserError, match="no such file"):
        find_resume(str(folder / "step=9.ckpt"), folder)
    assert find_resume("auto", tmp_path / "fresh") is None


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"lacks optimizer_states"):
        read_checkpoint(tmp_path / "other.ckpt")
