"""``data.batch_size`` beside the split that it is drawn from, and the memory of the machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mmdit.data.synthetic import SyntheticLatents
from mmdit.errors import UserError, is_out_of_memory
from mmdit.training.batch_size import MAX_PASSES, check_batch, sample_bytes
from mmdit.training.config import DataConfig, TrainingConfig
from mmdit.training.recipes import build_run
from mmdit.training.run import fit


def test_a_batch_as_large_as_the_split_is_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    check_batch(8, SyntheticLatents(2, 8), "train")
    assert not caplog.messages


def test_a_larger_one_repeats_samples_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_batch(MAX_PASSES * 8, SyntheticLatents(2, 8), "train")
    assert caplog.messages == [
        f"data.batch_size is {MAX_PASSES * 8}: split 'train' has 8 samples, mirrored views included, so a step takes some more "
        "than once"
    ]


def test_one_far_larger_is_a_slip(tiny_config: Callable[..., TrainingConfig]) -> None:
    with pytest.raises(UserError) as caught:
        build_run(tiny_config(data=DataConfig(batch_size=10**6)))  # 64 synthetic samples
    assert str(caught.value) == (
        "data.batch_size is 1000000: split 'train' has 64 samples, mirrored views included, and a step would go over them 15625 "
        "times: give at most 6400; 64 takes each once"
    )


def test_data_of_a_batch_beyond_the_memory() -> None:
    """One sample of 2^34 bytes that takes none: all its elements are one."""

    class Huge(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> dict[str, object]:
            return {"id": str(index), "moments": torch.zeros(1).expand(2**32), "subjects": [torch.zeros(2), "x"]}

    assert sample_bytes(Huge()) == 2**34 + 8
    with pytest.raises(UserError, match=r"data\.batch_size is 4096: the data alone of such a batch take 70368\.7 GB"):
        check_batch(4096, Huge(), "train")
    check_batch(4096, Huge(), "train", num_nodes=10**6)  # shared


def test_size_of_a_sample_is_that_of_its_tensors() -> None:
    sample = SyntheticLatents(2, 8)[0]
    expected = sum(value.numpy().nbytes for value in sample.values() if isinstance(value, torch.Tensor))
    assert sample_bytes(SyntheticLatents(2, 8)) == expected > 0


def test_errors_of_too_little_memory() -> None:
    for allocate in (lambda: torch.empty(2**55), lambda: np.empty(2**55)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_step_beyond_the_memory_names_the_option(tiny_config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    class Greedy(Callback):
        def on_train_batch_start(self, *_: object) -> None:
            torch.empty(2**55)

    config = tiny_config()
    run = build_run(config)
    run.callbacks.append(Greedy())
    with pytest.raises(UserError, match=r"data\.batch_size is 4: a step needs more memory than there is") as caught:
        fit(run, config.trainer, config.ema, tmp_path / "run", None)
    assert "give a smaller one, and trainer.accumulate_grad_batches" in str(caught.value)
