"""FP8 is refused where it cannot run, takes the large products of blocks, and keeps every name and weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.training import float8


@pytest.mark.parametrize(
    ("capability", "installed", "named"),
    [(None, True, "no CUDA GPU"), ((8, 0), True, "capability 8.0, FP8 needs 8.9"), ((9, 0), False, "torchao is not")],
)
def test_float8_is_refused_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capability: Any, installed: bool, named: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(UserError, match=f"trainer.float8: .*{named}"):
        float8.convert_to_float8(nn.Linear(16, 16))


def test_float8_takes_the_large_products_of_blocks() -> None:
    network = MultimodalDiT(sample_size=8, hidden_size=32, depth=1, num_heads=2, num_classes=3)
    chosen = {name for name, module in network.named_modules() if float8.is_float8_layer(module, name)}
    assert chosen == {f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}


def test_float8_layers_keep_names_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(float8, "float8_problem", lambda: None)
    network = MultimodalDiT(sample_size=8, hidden_size=32, depth=1, num_heads=2, num_classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    float8.convert_to_float8(network)
    assert type(network.blocks[0].mlp.fc1).__name__ == "Float8Linear"  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert before.keys() == network.state_dict().keys()
