"""Whole runs: killed and resumed, stopped by NaN, continued, refused."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from mmdit.cli.train import train
from mmdit.data.datamodule import numbered_generator
from mmdit.data.synthetic import SyntheticLatents
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training import stopping
from mmdit.training.checkpoints import find_resume, read_checkpoint
from mmdit.training.config import EMAConfig, ModelConfig, TrainingConfig
from mmdit.training.module import NonFiniteLossError
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

Configure = Callable[..., TrainingConfig]
WEIGHTS = "pipeline/transformer/diffusion_pytorch_model.safetensors"
ROOT = Path(__file__).parents[2]


def run(config: TrainingConfig, output: Path, resume: str | None = None) -> Path | None:
    return fit(build_run(config), config.trainer, config.ema, output, resume)


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


STEPS = 24
MODALITY_NAMES = ["rgb", "depth", "normal", "segmentation"]
SECTIONS = ("task", "objective", "alignment", "optimizer", "trainer", "ema", "preview")


def command(output: Path, *more: str) -> list[str]:
    arguments = ["train", "--config", str(ROOT / "configs/debug.yaml"), "--output", str(output)]
    arguments += ["--trainer.max_steps", str(STEPS), "--trainer.checkpoint_every", "3", "--trainer.validate_every", "0"]
    return [*arguments, *more]


def wait_for_checkpoint(folder: Path, timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while not list(folder.glob("checkpoints/*.ckpt")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, processes: Any) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    processes.run(command(folder))
    return folder


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, whole: Path, processes: Any) -> None:
    """SIGKILL after the first checkpoint, wherever the run is by then; resume; compare every weight bit by bit."""
    killed = tmp_path / "killed"
    child = processes.start(command(killed))
    wait_for_checkpoint(killed)
    os.kill(child.pid, signal.SIGKILL)
    assert processes.wait(child) == -signal.SIGKILL, "the run ended before it could be killed"
    assert list(killed.glob("checkpoints/*.ckpt"))
    processes.run(command(killed, "--resume", "auto"))
    assert same_weights(whole / WEIGHTS, killed / WEIGHTS)
    states = [read_checkpoint(folder / f"checkpoints/step={STEPS:08d}.ckpt") for folder in (whole, killed)]
    for key, value in states[0]["current_model_state"].items():
        assert torch.equal(value, states[1]["current_model_state"][key]), key
    for ours, theirs in zip(*(s["optimizer_states"][0]["state"].values() for s in states), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_preempted_on_slurm_and_resumed_equals_uninterrupted(tmp_path: Path, whole: Path, processes: Any) -> None:
    """SLURM sends TERM before it takes the node away."""
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    folder = tmp_path / "run"
    child = processes.start(command(folder), env={**job, "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"})
    wait_for_checkpoint(folder)
    os.kill(child.pid, signal.SIGTERM)
    assert processes.wait(child) == 0, child.text
    assert not (folder / "pipeline").exists(), "the run ended before it was interrupted"
    last = max(folder.glob("checkpoints/*.ckpt"))
    assert f"stopped by SIGTERM at step {int(last.stem[5:])} of {STEPS}: go on with --resume {last}" in child.text
    processes.run(command(folder, "--resume", "auto"))
    assert same_weights(whole / WEIGHTS, folder / WEIGHTS)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path: Path, processes: Any) -> None:
    children = processes.start_group(
        command(tmp_path / "run", "--trainer.devices", "2", "--trainer.strategy", "ddp"), 2
    )
    wait_for_checkpoint(tmp_path / "run")
    os.kill(children[1].pid, signal.SIGTERM)
    assert [processes.wait(child) for child in children] == [0, 0], children[0].text + children[1].text
    last = read_checkpoint(max(tmp_path.glob("run/checkpoints/*.ckpt")))
    assert last["batches_seen"] == last["global_step"] < STEPS
    assert "stopped by SIGTERM" in children[0].text
    assert not (tmp_path / "run/pipeline").exists()


def test_a_closed_terminal_ends_a_run_with_a_checkpoint(tmp_path: Path, processes: Any) -> None:
    folder = tmp_path / "run"
    child = processes.start(command(folder, "--trainer.max_steps", "20000"))  # far from its end when the signal comes
    wait_for_checkpoint(folder)
    os.kill(child.pid, signal.SIGHUP)
    assert processes.wait(child) == 0, child.text
    last = max(folder.glob("checkpoints/*.ckpt"))
    assert f"stopped by SIGHUP at step {int(last.stem[5:])} of 20000: go on with --resume {last}" in child.text
    assert read_checkpoint(last)["global_step"] < 20000
    assert "\r" not in child.text  # the log of a run without a terminal is made of lines
    assert not (folder / ".mmdit.lock").exists()


def test_a_second_training_in_the_folder_is_refused_and_harms_nothing(
    tmp_path: Path, whole: Path, processes: Any
) -> None:
    folder = tmp_path / "run"
    child = processes.start(command(folder))
    wait_for_checkpoint(folder)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        before = (folder / "config.yaml").read_bytes()
        for more in ((), ("--resume", "auto"), ("--seed", "7", "--resume", "auto")):
            second = processes.start(command(folder, *more))
            assert processes.wait(second) == 2
            assert re.search(r"mmdit: error: .*run: 'mmdit train' \(process \d+ .*\) is writing here", second.text)
        assert (folder / "config.yaml").read_bytes() == before
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert processes.wait(child) == 0, child.text
    assert same_weights(whole / WEIGHTS, folder / WEIGHTS)
    log = child.text
    assert re.search(
        rf"\d\d:\d\d:\d\d training, step {STEPS} of {STEPS}, .*loss \d.*: 100% {STEPS}/{STEPS} steps", log
    ), log


@pytest.mark.parametrize("seed", [2**43 + 1, 20261125154414, 2**63 - 1])
def test_every_seed_trains(tmp_path: Path, tiny_config: Configure, seed: int) -> None:
    config = tiny_config(max_steps=1, checkpoint_every=1)
    assert run(replace(config, seed=seed), tmp_path / "run") is not None


def test_seeds_that_worked_draw_what_they_drew() -> None:
    for seed, number in ((0, 0), (3, 41), (2**43, 10**6)):
        expected = torch.Generator().manual_seed(seed * 1_000_003 + number).initial_seed()
        assert numbered_generator(seed, number).initial_seed() == expected


class Interrupt(Callback):
    """Sends this process a signal during the second batch of the second optimizer step."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_step_and_names_the_checkpoint(
    tmp_path: Path, tiny_config: Configure, capsys: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    """In the middle of an accumulation the step is finished first: its gradients are in no checkpoint."""
    config = tiny_config(max_steps=4, checkpoint_every=4)
    config.trainer.accumulate_grad_batches = 2
    handler = signal.getsignal(sent)
    built = build_run(config)
    built.callbacks.append(Interrupt(sent))
    if sent == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            fit(built, config.trainer, config.ema, tmp_path, None)
    else:
        assert fit(built, config.trainer, config.ema, tmp_path, None) is None
    last = tmp_path / "checkpoints/step=00000002.ckpt"
    assert read_checkpoint(last)["batches_seen"] == 4
    assert f"stopped by {sent.name} at step 2 of 4: go on with --resume {last}" in capsys.readouterr().err
    assert signal.getsignal(sent) is handler


class Clock:
    """Seconds that a test sets; everything else of the module is the real one."""

    seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return (lambda: self.seconds) if name == "monotonic" else getattr(time, name)


def test_the_learning_rate_decays_with_the_time(
    tmp_path: Path, tiny_config: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step takes a tenth of the time: after seven the decay begins, after ten and one more the run is over."""
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    config = tiny_config(max_steps=1000, checkpoint_every=1000)
    config.trainer.max_hours = 1.0
    config.optimizer = replace(config.optimizer, decay_by="time", schedule="linear", warmup_steps=0)
    built = build_run(config)
    rates = []

    class Tick(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            clock.seconds = 360.0 * (batch_idx + 1)  # the step's end
            group = trainer.optimizers[0].param_groups[0]
            rates.append(group["lr"] / group["initial_lr"])

    built.callbacks.append(Tick())
    assert fit(built, config.trainer, config.ema, tmp_path, None) == tmp_path / "pipeline"
    # a step is told of the time after the step before the last
    assert rates == pytest.approx([1.0] * 9 + [2 / 3, 1 / 3], abs=1e-6)
    assert built.module._progress() == 1.0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "100% of the time: 11 steps, " in last
    assert "left" not in last


@pytest.mark.parametrize(
    ("decay_by", "named"),
    [
        ("time", "optimizer.decay_by is 'time', and trainer.max_hours is null"),
        ("hours", "unknown optimizer.decay_by 'hours'"),
    ],
)
def test_a_decay_by_the_time_needs_one(tmp_path: Path, tiny_config: Configure, decay_by: str, named: str) -> None:
    config = tiny_config()
    config.optimizer.decay_by = decay_by
    with pytest.raises(UserError, match=named):
        run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_resuming_in_the_middle_is_exact_with_accumulation(
    tmp_path: Path, tiny_config: Configure, recwarn: pytest.WarningsRecorder
) -> None:
    config = tiny_config(max_steps=4, checkpoint_every=2)
    config.trainer.accumulate_grad_batches = 2
    run(config, tmp_path / "whole")
    half = tmp_path / "half" / "checkpoints"
    half.mkdir(parents=True)
    checkpoint = half / "step=00000002.ckpt"
    checkpoint.write_bytes((tmp_path / "whole/checkpoints/step=00000002.ckpt").read_bytes())
    assert read_checkpoint(checkpoint)["batches_seen"] == 4
    recwarn.clear()
    run(config, tmp_path / "half", "auto")
    assert not [each for each in recwarn if "dirpath" in str(each.message)]  # a copied folder is nothing to warn of
    assert sorted(path.name for path in half.iterdir()) == ["step=00000002.ckpt", "step=00000004.ckpt"]
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


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, tiny_config: Configure) -> None:
    """And the run's folder stays as it was, configuration included: the command writes that after this check alone."""
    config = tiny_config()
    run(config, tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sections = {name: getattr(config, name) for name in SECTIONS}
    deeper = replace(config.model, depth=3)
    message = "of another network .*blocks.2.* is none there, .* in this configuration.: resume with the run's own"
    with pytest.raises(UserError, match=message):
        train(tmp_path, model=deeper, data=config.data, resume="auto", **sections)
    other = replace(config.optimizer, name="adamw" if config.optimizer.name == "muon" else "muon")
    with pytest.raises(UserError, match=r"of another optimizer: resume with the run's own optimizer\.name"):
        train(tmp_path, model=config.model, data=config.data, resume="auto", **{**sections, "optimizer": other})
    wider = replace(config, model=replace(config.model, mlp_ratio=2.0))
    with pytest.raises(UserError, match=r"\d+ x \d+ there, \d+ x \d+ in this configuration"):
        run(wider, tmp_path, "auto")
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("objective", {"prediction": "velocity"}, "network.prediction was 'sample', now 'velocity'"),
        ("model", {"modalities": ["normal", "depth", "rgb", "segmentation"]}, "network.modalities was "),
        ("model", {"position_embedding": "rope"}, "network.position_embedding was 'sincos', now 'rope'"),
        ("model", {"num_heads": 1}, "network.num_heads was 2, now 1"),
    ],
)
@pytest.mark.parametrize("recorded", ["in the checkpoint", "in the pipeline", "in config.yaml"])
def test_weights_of_another_meaning_are_refused(
    tmp_path: Path, tiny_config: Configure, section: str, changes: dict[str, Any], named: str, recorded: str
) -> None:
    """Names and shapes are the same; checkpoints of earlier versions lack the record, and their folder tells."""
    config = tiny_config(max_steps=2, model=ModelConfig(size="debug", modalities=MODALITY_NAMES, num_heads=2))
    sections = {name: getattr(config, name) for name in (*SECTIONS, "model", "data")}
    train(tmp_path, **sections)
    checkpoint = tmp_path / "checkpoints/step=00000002.ckpt"
    if recorded != "in the checkpoint":
        torch.save({k: v for k, v in torch.load(checkpoint).items() if k != "meaning"}, checkpoint)
    if recorded == "in config.yaml":
        shutil.rmtree(tmp_path / "pipeline")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = {**sections, section: replace(sections[section], **changes)}
    for resume in ("auto", str(checkpoint)):
        with pytest.raises(UserError, match=re.escape(f"{checkpoint}: holds weights of another request ({named}")):
            train(tmp_path, resume=resume, **other)
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_gives_weights_no_meaning_may_change(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config(max_steps=2)
    run(config, tmp_path)
    objective = replace(config.objective, loss_weights={"rgb": 2.0}, timesteps="uniform")
    other = tiny_config(
        max_steps=3,
        seed=1,
        model=replace(config.model, class_dropout_prob=0.5),
        data=replace(config.data, batch_size=2),
        objective=objective,
        optimizer=replace(config.optimizer, lr=1e-4, schedule="cosine"),
        alignment=replace(config.alignment, depth=2, weight=0.1),
    )
    assert run(other, tmp_path, "auto") is not None


def test_without_an_average_the_trained_weights_go_on(tmp_path: Path, tiny_config: Configure) -> None:
    run(tiny_config(max_steps=2, ema=EMAConfig(decay=0.999, warmup=False)), tmp_path)
    older = read_checkpoint(tmp_path / "checkpoints/step=00000002.ckpt")
    trained, average = older["current_model_state"], older["state_dict"]
    name = "network.blocks.0.mlp.fc1.weight"
    assert not torch.equal(trained[name], average[name])
    run(tiny_config(max_steps=2, ema=None), tmp_path, "auto")
    exported = load_file(tmp_path / WEIGHTS)
    assert torch.equal(exported[name.removeprefix("network.")], trained[name])
    still = replace(tiny_config().optimizer, lr=1e-12, muon_lr=1e-12, weight_decay=0.0)
    run(tiny_config(max_steps=3, ema=None, optimizer=still), tmp_path, "auto")
    later = read_checkpoint(tmp_path / "checkpoints/step=00000003.ckpt")["state_dict"]
    torch.testing.assert_close(later[name], trained[name], rtol=0, atol=1e-6)


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


def test_a_run_goes_on_from_the_checkpoint_before_a_corrupt_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_config: Configure
) -> None:
    config = tiny_config(max_steps=4)
    run(config, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    newest = tmp_path / "checkpoints/step=00000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    run(config, tmp_path, "auto")
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert "falling back to the checkpoint before" in caplog.text
    assert all(torch.equal(value, weights[name]) for name, value in load_file(tmp_path / WEIGHTS).items())


@contextmanager
def no_file_beyond(num_bytes: int) -> Iterator[None]:
    """Writes beyond ``num_bytes`` of a file fail, in the middle of it, as those on a full disk do."""
    found = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, found[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, found)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, tiny_config: Configure) -> None:
    """The second checkpoint's tensors find no room, which PyTorch's writer reports in words of its own."""
    folder = tmp_path / "checkpoints"
    run(tiny_config(max_steps=2), tmp_path)
    older = folder / "step=00000002.ckpt"
    left = (folder / ".step=00000003.ckpt.tmp", folder / ".step=00000009.ckpt.tmp")  # of runs that were killed
    for path in left:
        path.write_bytes(b"half")
    expected = r"step=00000004\.ckpt can't be written: File too large; the newest one that is whole: .*step=00000002"
    config = tiny_config(max_steps=4)
    for share in (0.3, 0.95):
        with (
            no_file_beyond(int(older.stat().st_size * share)),
            pytest.raises(UserError, match=expected + r".*Free some space, then go on with --resume auto"),
        ):
            run(config, tmp_path, "auto")
        assert [path.name for path in folder.iterdir()] == [older.name]
    assert read_checkpoint(older)["global_step"] == 2
    run(config, tmp_path, "auto")
    assert read_checkpoint(folder / "step=00000004.ckpt")["global_step"] == 4


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, tiny_config: Configure) -> None:
    run(tiny_config(), tmp_path)
    older, newest = sorted(tmp_path.glob("checkpoints/*.ckpt"))
    os.utime(older, (1, 1))
    whole = newest.read_bytes()
    with zipfile.ZipFile(newest) as archive:
        parts = [(part.filename, part.header_offset, part.file_size) for part in archive.infolist() if part.file_size]
    for name, offset, size in [parts[0], parts[len(parts) // 2], parts[-1]]:
        start = offset + 30 + sum(int.from_bytes(whole[offset + i : offset + i + 2], "little") for i in (26, 28))
        damaged = bytearray(whole)
        damaged[start + size // 2] ^= 1
        newest.write_bytes(damaged)
        with pytest.raises(UserError, match=f"damaged .*checksum of its part {name} is wrong"):
            read_checkpoint(newest)
        assert find_resume("auto", newest.parent) == older
    newest.write_bytes(whole)
    assert find_resume("auto", newest.parent) == newest


def test_progress_counts_the_steps_of_the_whole_run(
    tmp_path: Path, tiny_config: Configure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_config(max_steps=2), tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run(tiny_config(max_steps=5), tmp_path, "auto")
    shown = capsys.readouterr()
    assert "resuming from" in shown.err
    assert re.search(r"Training: +80%\|.*\| 4/5 ", shown.out + shown.err)
    assert "Epoch" not in shown.out + shown.err


def test_fewer_steps_than_the_checkpoint_has_are_refused(tmp_path: Path, tiny_config: Configure) -> None:
    folder = run(tiny_config(max_steps=2), tmp_path)
    with pytest.raises(
        UserError, match=r"max_steps is 1, and .*step=00000002\.ckpt is at step 2 already: give at least 2"
    ):
        run(tiny_config(max_steps=1), tmp_path, "auto")
    assert run(tiny_config(max_steps=2), tmp_path, "auto") == folder


def test_without_a_terminal_progress_is_lines(
    tmp_path: Path, tiny_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_config(max_steps=2), tmp_path)
    capsys.readouterr()
    run(tiny_config(max_steps=5), tmp_path, "auto")
    shown = capsys.readouterr()
    assert "\r" not in shown.out + shown.err
    line = r"\d\d:\d\d:\d\d training, step 5 of 5, loss [\d.]+, img/s [\d.]+: 100% 3/3 steps, .*/s.*, 0:\d\d passed"
    assert re.search(line, shown.err), shown.err


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"lacks optimizer_states"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_resumed_run_keeps_two_checkpoints(tmp_path: Path, tiny_config: Configure) -> None:
    run(tiny_config(max_steps=4), tmp_path)
    resumed = tiny_config(max_steps=8)
    fit(build_run(resumed), resumed.trainer, resumed.ema, tmp_path, "auto")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step=00000006.ckpt",
        "step=00000008.ckpt",
    ]


def test_resumed_at_its_end_a_run_exports_the_same_average(tmp_path: Path, tiny_config: Configure) -> None:
    """As after a crash between the last checkpoint and the export."""
    config = tiny_config(max_steps=2)
    whole = run(config, tmp_path)
    assert whole is not None
    first = whole.rename(tmp_path / "first")
    again = run(config, tmp_path, "auto")
    assert again is not None
    name = Path(WEIGHTS).relative_to("pipeline")
    assert same_weights(first / name, again / name)
