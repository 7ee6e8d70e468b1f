"""Latents of noise on disk, in the layout of real ones: the loader and the network take as long with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmdit.data.latents import LatentsInfo, features_name, shard_name
from mmdit.modalities.modality import Modality


def write_random_latents(
    root: Path,
    *,
    modalities: Mapping[str, Modality],
    num_samples: int,
    latent_size: int = 32,
    latent_channels: int = 4,
    num_classes: int = 1000,
    features_shape: tuple[int, int] | None = None,
    shard_size: int = 512,
) -> LatentsInfo:
    """Write one view of ``num_samples`` random samples as the split "train".

    Args:
        root: the folder; ``root/vae`` is left to the caller.
        modalities: in order.
        num_samples, shard_size: how many, and how many in a file.
        latent_size: h = w.
        latent_channels: C.
        num_classes: categories.
        features_shape: (T, D) of stand-in teacher features, or None.
    """
    shape = (2 * latent_channels, latent_size, latent_size)
    statistics = {"latents_mean": [0.0] * latent_channels, "latents_std": [1.0] * latent_channels}
    features: dict[str, Any] | None = None
    if features_shape is not None:
        features = {"teacher": "random", "shape": list(features_shape)}
    info = LatentsInfo(
        {name: modality.replace(**statistics) for name, modality in modalities.items()},
        tuple(f"class {number}" for number in range(num_classes)),
        1,
        shape,
        {"fingerprint": None, "config": {}},
        features,
    )
    generator = torch.Generator().manual_seed(0)
    folder = root / "train"
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, num_samples, shard_size)):
        count = min(shard_size, num_samples - start)
        tensors = {name: torch.randn(count, 1, *shape, generator=generator).half() for name in modalities}
        for moments in tensors.values():
            moments[:, :, latent_channels:] -= 8  # log-variances: a narrow posterior
        tensors["present"] = torch.ones(count, len(modalities), dtype=torch.bool)
        tensors["category"] = torch.randint(num_classes, (count,), generator=generator)
        save_file(tensors, folder / shard_name(number))
        if features_shape is not None:
            values = torch.randn(count, 1, *features_shape, generator=generator).half()
            save_file({"features": values}, folder / features_name(number))
        shards.append({"ids": [f"random-{start + i:06d}" for i in range(count)]})
    (folder / "index.json").write_text(json.dumps({"shards": shards}), encoding="utf-8")
    (root / "latents.json").write_text(json.dumps(info.to_dict()), encoding="utf-8")
    return info
