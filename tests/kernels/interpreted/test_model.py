"""The model on the kernels: the same outputs and gradients as on PyTorch's operators, and one graph."""

from __future__ import annotations

import pytest
import torch
from mmdit_kernels.adaln import registration
from mmdit_kernels.attention import packed
from torch import Tensor

pytest.importorskip("diffusers")

from mmdit.models.transformer import MultimodalDiT

B, M, C, SIZE = 1, 2, 4, 8


def make_model(qk_norm: str | None, position_embedding: str) -> MultimodalDiT:
    torch.manual_seed(0)
    model = MultimodalDiT(("rgb", "depth"), sample_size=SIZE, hidden_size=48, depth=2, num_heads=2, num_classes=3,
                          class_dropout_prob=0.0, qk_norm=qk_norm, position_embedding=position_embedding)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # gates and heads start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def run(model: MultimodalDiT, backend: str, monkeypatch: pytest.MonkeyPatch, compiled: bool = False) -> list[Tensor]:
    """Return the output and the gradient of every parameter and of the latents."""
    monkeypatch.setenv("MMDIT_KERNELS", backend)
    torch.manual_seed(1)
    latents = torch.randn(B, M, C, SIZE, SIZE, requires_grad=True)
    timesteps, roles = torch.rand(B, M), torch.tensor([[1, 0]])
    conditioning = model.conditioner(torch.tensor([2]))
    function = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    out = function(latents, timesteps, roles, conditioning, return_dict=False)[0]
    inputs = [latents, *model.parameters()]
    return [out, *torch.autograd.grad(out.square().mean(), inputs, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(("qk_norm", "position_embedding"), [(None, "sincos"), ("rms_norm", "rope")])
def test_outputs_and_gradients(qk_norm: str | None, position_embedding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(qk_norm, position_embedding)
    calls = []
    run_forward = packed.run_forward
    monkeypatch.setattr(packed, "run_forward", lambda inputs: calls.append(inputs) or run_forward(inputs))
    sums = []
    adaln_launch = registration.forward_launch
    monkeypatch.setattr(
        registration, "forward_launch", lambda x, y, *a: sums.append(y is not None) or adaln_launch(x, y, *a)
    )
    ours = run(model, "triton", monkeypatch)
    assert sum(sums) == 3  # the first block leaves its second sum to the second one; the head's norms need the last sum
    assert len(calls) == 2  # one for each block
    assert all((inputs.q_weight is None) == (qk_norm is None) == (inputs.cos is None) for inputs in calls)
    exact = run(model, "torch", monkeypatch)
    assert len(calls) == 2
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    if qk_norm is not None:
        for mine, theirs in zip(run(model, "triton", monkeypatch, compiled=True), ours, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_who_waits_for_the_tokens_between_two_blocks_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook, a tap, a cache and checkpointing keep the sum where it was; so does the torch backend."""
    monkeypatch.setenv("MMDIT_KERNELS", "triton")
    model, x = make_model(None, "sincos"), torch.randn(1, 4, 48)
    assert model._unadded(x, set()) == {1}
    assert model._unadded(x, {1}) == set()
    for block in model.blocks:
        for register in (block.register_forward_hook, block.register_forward_pre_hook):
            handle = register(lambda *_: None)
            assert model._unadded(x, set()) == set()
            handle.remove()
    model.enable_gradient_checkpointing()
    assert model._unadded(x, set()) == set()
    model.disable_gradient_checkpointing()
    model._cache_config = object()  # what enable_cache leaves, without its import of all of diffusers' models
    assert model._unadded(x, set()) == set()
    model._cache_config = None
    assert model._unadded(x, set()) == {1}
    monkeypatch.setenv("MMDIT_KERNELS", "torch")
    assert model._unadded(x, set()) == set()


@pytest.mark.parametrize("block", ["dit", "cross", "joint"])
def test_a_sum_that_is_left_is_the_one_that_was(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's operators: two blocks, with a prompt where they read one."""
    from mmdit.conditioning import Conditioning
    from mmdit.models.blocks import BLOCKS, Residual

    monkeypatch.setenv("MMDIT_KERNELS", "torch")
    torch.manual_seed(0)
    first, second = (BLOCKS[block](32, 2).double() for _ in range(2))
    for parameter in (*first.parameters(), *second.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    x, c = torch.randn(2, 5, 32).double(), torch.randn(2, 32).double()
    context = Conditioning(c, torch.randn(2, 3, 32).double(), torch.ones(2, 3, dtype=torch.bool))
    left = first(x, c, None, context, add=False)
    assert isinstance(left, Residual)
    torch.testing.assert_close(second(left, c, None, context), second(first(x, c, None, context), c, None, context))
