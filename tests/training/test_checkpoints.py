"""Checkpoints are found by step, and of the right types."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.errors import UserError
from mmdit.training.checkpoints import StepCheckpoint, by_step, find_resume, read_checkpoint, step_of

WHOLE = {
    "state_dict": {},
    "optimizer_states": [{"param_groups": [{"params": []}]}],
    "global_step": 3,
    "batches_seen": 3,
}


def save(path: Path, age: float, **changes: Any) -> Path:
    torch.save(WHOLE | changes, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_auto_goes_on_from_the_furthest_step_whatever_the_times(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"step={step:08d}.ckpt", age) for step, age in ((2, 0), (100, 5), (30, 9))]
    save(tmp_path / "mine.ckpt", -100)
    assert [step_of(path) for path in by_step(tmp_path)] == [100, 30, 2, -1]
    assert find_resume("auto", tmp_path) == paths[1]
    paths[1].write_bytes(b"damaged")
    assert find_resume("auto", tmp_path) == paths[2]


def test_numbers_beyond_eight_digits_are_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path / f"step={step:08d}.ckpt", 0)
    assert step_of(by_step(tmp_path)[0]) == 100_000_000


def test_the_last_two_are_kept_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, age in ((2, 0), (4, 50), (6, 9), (8, 3)):
        save(tmp_path / f"step={step:08d}.ckpt", age)
    save(tmp_path / "mine.ckpt", 100)
    callback = StepCheckpoint(tmp_path, every=2)
    monkeypatch.setattr("lightning.pytorch.callbacks.ModelCheckpoint._save_checkpoint", lambda *arguments: None)
    trainer: Any = type("Trainer", (), {"is_global_zero": True})()
    callback._save_checkpoint(trainer, str(tmp_path / "step=00000006.ckpt"))
    # Step 8 is of a future that this run has not reached: not an older one.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.ckpt", "step=00000004.ckpt", "step=00000006.ckpt", "step=00000008.ckpt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": [1]}, "state_dict is a list, not tensors by name"),
        ({"state_dict": {"a": 1}}, "state_dict is a dict, not tensors by name"),
        ({"optimizer_states": {}}, "optimizer_states is a dict"),
        ({"optimizer_states": []}, "optimizer_states is a list"),
        ({"optimizer_states": [{"param_groups": [1]}]}, "optimizer_states is a list"),
        ({"global_step": "x"}, "global_step is a str, not a count"),
        ({"batches_seen": -1}, "batches_seen is a int, not a count"),
        ({"global_step": True}, "global_step is a bool"),
    ],
)
def test_wrong_types_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_checkpoint(save(tmp_path / "a.ckpt", 0, **changes))


def test_a_folder_stands_for_the_furthest_checkpoint_in_it(tmp_path: Path) -> None:
    own, other = tmp_path / "own/checkpoints", tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        UserError, match=f"^--resume {other}: holds no checkpoint; give a .ckpt file or a run's folder$"
    ):
        find_resume(str(other), own)
    paths = [save(other / f"checkpoints/step={step:08d}.ckpt", 0) for step in (2, 30)]
    for given in (other, other / "checkpoints"):
        assert find_resume(str(given), own) == paths[1]
    paths[1].write_bytes(b"damaged")
    assert find_resume(str(other), own) == paths[0]
    paths[0].write_bytes(b"damaged")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        find_resume(str(other), own)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"text"])
def test_another_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    message = f"checkpoint {path} is not a training checkpoint of mmdit: give a .ckpt file or a run's folder"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        find_resume(str(path), tmp_path)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: is a pipe"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert by_step(tmp_path) == []
