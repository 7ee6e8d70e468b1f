from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.models.transformer import MultimodalDiT

Inputs = tuple[Tensor, Tensor, Tensor, Conditioning]


@pytest.fixture
def make_model() -> Callable[..., MultimodalDiT]:
    """A tiny model with random weights everywhere, the layers that start at zero included."""

    def make(**config: Any) -> MultimodalDiT:
        generator = torch.Generator().manual_seed(0)
        values = {"sample_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
        model = MultimodalDiT(**(values | config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return make


@pytest.fixture
def make_inputs() -> Callable[..., Inputs]:
    """Latents, timesteps, roles and conditioning of a batch for ``make_model``."""

    def make(model: MultimodalDiT, batch: int = 2, height: int = 8, width: int = 8) -> Inputs:
        generator = torch.Generator().manual_seed(1)
        m = len(model.config.modalities)
        latents = torch.randn(batch, m, model.config.in_channels, height, width, generator=generator)
        timesteps = torch.rand(batch, m, generator=generator)
        roles = torch.randint(4, (batch, m), generator=generator)
        labels = torch.arange(batch) % model.config.num_classes
        dtype = next(model.parameters()).dtype
        return latents.to(dtype), timesteps, roles, model.conditioner(labels)

    return make
