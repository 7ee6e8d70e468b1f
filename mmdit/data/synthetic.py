"""Latents that need nothing on disk: smooth patterns, aligned over the modalities, for debugging and tests."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset


class SyntheticLatents(Dataset):
    """Moments of sine waves whose direction is the class; the same items as ``LatentShards``.

    Args:
        num_modalities: M.
        num_samples: size of the set.
        seed: of the content.
        feature_dim: width of stand-in teacher features (T, feature_dim), or None.
    """

    num_classes = 4
    latent_channels = 4
    latent_size = 8

    def __init__(
        self, num_modalities: int = 4, num_samples: int = 64, seed: int = 0, feature_dim: int | None = None
    ) -> None:
        self.num_modalities, self.num_samples = num_modalities, num_samples
        self.seed, self.feature_dim = seed, feature_dim

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        category = index % self.num_classes
        angle = torch.tensor(category * torch.pi / self.num_classes)
        axis = torch.linspace(-1, 1, self.latent_size)
        along = axis[:, None] * angle.sin() + axis[None] * angle.cos()  # (h, w)
        phases = torch.rand(self.num_modalities, self.latent_channels, 1, 1, generator=generator) * 0.5
        mean = 2 * torch.sin(3 * along + phases + torch.arange(self.num_modalities)[:, None, None, None])
        item = {
            "id": f"synthetic-{self.seed}-{index:05d}",
            "category": category,
            "present": torch.ones(self.num_modalities, dtype=torch.bool),
            "moments": torch.cat([mean, torch.full_like(mean, -8.0)], dim=1),  # (M, 2C, h, w)
        }
        if self.feature_dim is not None:
            num_tokens = (self.latent_size // 2) ** 2
            item["features"] = torch.randn(num_tokens, self.feature_dim, generator=generator)
        return item
