"""What a speed report says, against closed forms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmdit.bench import speed
from mmdit.data.latents import LatentShards
from mmdit.data.random_latents import write_random_latents
from mmdit.modalities import get_modalities
from mmdit.models.transformer import MultimodalDiT


def expected_flops(d: int, depth: int, tokens: int, m: int, projector: tuple[int, int] | None) -> float:
    """Two per multiply-add: blocks (qkv, proj, MLP: 12 D² per token; attention 2 T D per token; adaLN 6 D²), ends, embeddings."""
    block = tokens * 12 * d * d + 2 * tokens * tokens * d + 6 * d * d
    patch = 4 * 4  # p² C
    ends = 2 * tokens * m * patch * d + m * 2 * d * d
    embeddings = m * (256 * d + d * d / 2) + m * d / 2 * d + d * d
    total = depth * block + ends + embeddings
    if projector is not None:
        hidden, out = projector
        total += tokens * (d * hidden + hidden * hidden + hidden * out)
    return 2 * total


def test_counted_work_is_that_of_the_closed_form() -> None:
    network = MultimodalDiT(sample_size=8, hidden_size=64, depth=3, num_heads=4, num_classes=5)
    flops = speed.count_flops(network)
    assert flops["forward"] == pytest.approx(expected_flops(64, 3, 16, 4, None), rel=1e-3)
    # each product has two gradients, but that of the input is not needed where the input is data
    assert 2.9 < flops["training"] / flops["forward"] <= 3.0


def test_a_head_on_a_middle_block_is_counted_where_it_is_used() -> None:
    """In training, as the last head is: 2 M p² C of each token, and its own modulation; not in a forward without it."""
    settings: dict[str, Any] = {"sample_size": 8, "hidden_size": 64, "depth": 4, "num_heads": 4, "num_classes": 5}
    plain = speed.count_flops(MultimodalDiT(**settings))
    flops = speed.count_flops(MultimodalDiT(**settings, internal_guidance_depth=3))
    head = 2 * (16 * 4 * 16 * 64 + 4 * 2 * 64 * 64)
    assert flops["forward"] == plain["forward"]
    assert flops["training"] - plain["training"] == pytest.approx(3 * head, rel=1e-3)


def test_xl_needs_what_the_field_says() -> None:
    """0.712 TFLOP per image for forward and backward (SiT-XL/2: 118.6 GMAC forward), and a little for the projector."""
    with torch.device("meta"):
        network = MultimodalDiT(alignment_depth=8)
    flops = speed.count_flops(network)
    assert flops["forward"] / 2e9 == pytest.approx(118.6, rel=0.01)
    assert flops["training"] / 1e12 == pytest.approx(0.712 + 3 * 2 * 256 * (1152 + 2048 + 768) * 2048 / 1e12, rel=0.01)


def test_matrix_products_are_timed() -> None:
    rate = speed.matmul_rate(torch.device("cpu"), torch.float32, seconds=0.0)
    assert 1e8 < rate < 1e15
    assert speed.peak_memory(torch.device("cpu")) > 0.1
    assert "torch" in speed.machine(torch.device("cpu"))


def test_step_timer_measures_after_the_warm_up_and_counts_waiting() -> None:
    class Trainer:
        max_steps, global_step = 5, 0

    timer, trainer, module = speed.StepTimer(2), Trainer(), nn.Module()
    module.device = torch.device("cpu")  # type: ignore[assignment]
    for step in range(1, 6):
        time.sleep(0.02)  # loading
        timer.on_train_batch_start(trainer, module, None, step)  # type: ignore[arg-type]
        time.sleep(0.005)
        trainer.global_step = step
        timer.on_train_batch_end(trainer, module, None, None, step)  # type: ignore[arg-type]
    assert timer.num_steps == 3
    assert timer.seconds_per_step >= 0.025
    assert 0.5 < timer.data_wait_share < 0.95


def test_loader_outruns_the_model(tmp_path: Path) -> None:
    """256-pixel latents of four modalities."""
    write_random_latents(
        tmp_path, modalities=get_modalities(["rgb", "depth", "normal", "segmentation"]), num_samples=256
    )
    rate = speed.measure_loader(LatentShards(tmp_path), batch_size=64, seconds=0.5)
    assert rate["samples_per_second_per_core"] > 5000
