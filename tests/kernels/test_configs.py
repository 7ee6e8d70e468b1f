"""Tile tables: column parts, tuned files, and rules that hold for every shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmdit_kernels import tuning
from mmdit_kernels.adaln import configs as adaln
from mmdit_kernels.attention import configs as attention
from mmdit_kernels.dispatch import interpreting


def test_head_dimensions_are_not_padded_to_the_next_power_of_two() -> None:
    parts = {d: attention.column_parts(d) for d in range(8, 129, 8)}
    assert parts[64] == (64, 0)
    assert parts[72] == parts[80] == (64, 16)
    assert parts[96] == (64, 32)
    assert (parts[8], parts[40], parts[104], parts[128]) == ((16, 0), (32, 16), (128, 0), (128, 0))
    assert all(d <= sum(pair) < max(d + 32, 17) for d, pair in parts.items())


@pytest.mark.parametrize("width", [1, 7, 384, 768, 1000, 1152, 1536, 3000, 8191, 8192])
def test_widths_fit_their_column_parts(width: int) -> None:
    main, tail = adaln.column_parts(width)
    assert main >= 16
    assert width <= main + tail < max(17, 1.5 * width)
    assert all(part & (part - 1) == 0 for part in (main, tail))
    assert adaln.column_parts(1152) == (1024, 128)
    for kernel in adaln.KERNELS:
        tiles = adaln.shipped(kernel, "sm_90", width, 3, 257)
        assert tiles.chunk % tiles.rows == 0
        assert (tiles.piece > 0) == (kernel == "backward" and main + tail > 4096)
        assert 2 <= tiles.num_warps <= 32


def test_bucket_rounds_up() -> None:
    assert [tuning.bucket(size) for size in (1, 64, 65, 256, 1000)] == [64, 64, 128, 256, 1024]


@pytest.mark.skipif(interpreting(), reason="the interpreter takes no tuned tiles")
def test_a_tuned_file_is_read_once_and_wins_for_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"configs": {"attention_forward/bfloat16/d72/n256/s256/t0": [64, 32, 4, 5]}}))
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, str(path))
    tuning._table.cache_clear()
    tuning._path.cache_clear()
    try:

        def select(n: int) -> attention.Config:
            return attention.select("forward", "sm_90", torch.bfloat16, 72, n, 200, False, False)

        assert select(256) == select(129) == attention.Config(64, 32, 4, 5)
        path.unlink()
        assert select(256) == attention.Config(64, 32, 4, 5)
        assert select(257) == attention.shipped("forward", "sm_90", torch.bfloat16, 72, False, True)
        for text in ("{", "{}", "[]", '{"configs": {"a": 3}}'):
            path.write_text(text)
            tuning._table.cache_clear()
            with pytest.raises(ValueError, match=r"cannot read the tile sizes in .*tiles\.json: .*; delete the file"):
                select(256)
    finally:
        tuning._table.cache_clear()
        tuning._path.cache_clear()


def test_the_file_of_tiles_is_named_after_the_gpu_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts of two GPUs that are not here: the second one's tensors do not get the tiles of the current one."""
    names = {None: "NVIDIA H100", torch.device("cuda", 0): "NVIDIA H100", torch.device("cuda", 1): "NVIDIA A100"}
    monkeypatch.delenv(tuning.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: names[device])
    assert [tuning.tuned_path(device).name for device in names] == ["nvidia-h100.json"] * 2 + ["nvidia-a100.json"]


def test_keys_of_the_norms_name_both_dtypes() -> None:
    """Tiles measured in bfloat16 are not those of a float32 stream."""
    keys = [adaln.key("backward", stream, torch.bfloat16, 1152, 8192) for stream in (torch.bfloat16, torch.float32)]
    assert keys == ["adaln_backward/bfloat16-bfloat16/w1152/t8192", "adaln_backward/float32-bfloat16/w1152/t8192"]
