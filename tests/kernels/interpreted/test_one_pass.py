"""The backward in one pass: every gradient against float64, repeats bit for bit, and when it runs."""

from __future__ import annotations

import pytest
import torch
from attention_cases import BF16, F16, F32, Case, check
from mmdit_kernels import attention_packed
from mmdit_kernels.attention import configs, launches
from mmdit_kernels.attention.configs import Config

TILES = Config(16, 32, 4, 1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let small tiles be those that were measured; return whether each backward ran in one pass."""
    found = []
    launch = launches.one_pass_launch

    def one_pass_launch(*arguments: object, **options: object) -> object:
        result = launch(*arguments, **options)  # type: ignore[arg-type]
        found.append(result is not None)
        return result

    monkeypatch.setattr(configs, "tuned", lambda key, device: list(TILES) if "_backward/" in key else None)
    monkeypatch.setattr(launches, "one_pass_launch", one_pass_launch)
    return found


@pytest.mark.parametrize(
    "case",
    [
        Case(BF16, 72, 48, 64, h=2),
        Case(F16, 64, 32, 32, h=2),  # one block of keys: no sums wait
        Case(BF16, 40, 32, 64, magnitude=30.0),  # logits in the hundreds
        Case(F16, 24, 16, 64, h=2, layout="columns"),
    ],
    ids=str,
)
def test_gradients(case: Case, runs: list[bool]) -> None:
    check(case)
    assert runs == [True]


def test_repeats_are_identical_and_the_packed_gradient_is_dense(runs: list[bool]) -> None:
    qkv = torch.randn(1, 64, 3, 2, 24, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    grads = [torch.autograd.grad(attention_packed(qkv, backend="triton").float().square().sum(), qkv) for _ in range(2)]
    assert torch.equal(grads[0][0], grads[1][0])
    assert grads[0][0].is_contiguous()
    assert runs == [True, True]


def test_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has measured it: there is no built-in rule. Measured tiles are taken where they fit."""

    def select(dtype: torch.dtype, queries: int, keys: int, transforms: bool = False, masked: bool = False) -> object:
        return configs.select_one_pass(dtype, 72, queries, keys, transforms, masked)

    assert select(BF16, 256, 256) is None
    asked: list[str] = []
    monkeypatch.setattr(configs, "tuned", lambda key, device: asked.append(key) or list(configs.ONE_PASS))
    assert select(BF16, 256, 256) == select(F16, 1024, 128) == configs.ONE_PASS
    assert asked[0] == "attention_backward/bfloat16/d72/n256/s256/t0"
    others = [(F32, 256, 256), (BF16, 250, 256), (BF16, 256, 250), (BF16, 256, 384)]
    assert [select(*other) for other in others] == [None] * 4
    assert select(BF16, 256, 256, transforms=True) is select(BF16, 256, 256, masked=True) is None
