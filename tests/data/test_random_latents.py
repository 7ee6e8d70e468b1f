from __future__ import annotations

from pathlib import Path

import pytest

from mmdit.data.latents import LatentShards
from mmdit.data.random_latents import write_random_latents
from mmdit.modalities import get_modalities


def test_random_latents_are_read_as_real_ones(tmp_path: Path) -> None:
    write_random_latents(
        tmp_path,
        modalities=get_modalities(["rgb", "depth"]),
        num_samples=10,
        latent_size=8,
        features_shape=(16, 6),
        shard_size=4,
    )
    data = LatentShards(tmp_path, features=True)
    assert len(data) == 10
    item = data[9]
    assert item["moments"].shape == (2, 8, 8, 8)
    assert item["features"].shape == (16, 6)
    assert item["moments"][:, 4:].float().mean() == pytest.approx(-8, abs=0.3)
