"""The model on the kernels: the same outputs and gradients as on PyTorch's operators, and one graph."""

from __future__ import annotations

import pytest
import torch
from mmdit_kernels.attention import packed
from torch import Tensor

pytest.importorskip("diffusers")

from mmdit.models.transformer import MultimodalDiT

B, M, C, SIZE = 2, 2, 4, 8


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
    timesteps, roles = torch.rand(B, M), torch.tensor([[0, 0], [1, 0]])
    conditioning = model.conditioner(torch.tensor([0, 2]))
    function = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    out = function(latents, timesteps, roles, conditioning, return_dict=False)[0]
    inputs = [latents, *model.parameters()]
    return [out, *torch.autograd.grad(out.square().mean(), inputs, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(("qk_norm", "position_embedding"), [(None, "sincos"), ("rms_norm", "rope")])
def test_outputs_and_gradients(qk_norm: str | None, position_embedding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(qk_norm, position_embedding)
    calls = []
    forward_launch = packed.forward_launch
    monkeypatch.setattr(packed, "forward_launch", lambda inputs: calls.append(inputs) or forward_launch(inputs))
    ours = run(model, "triton", monkeypatch)
    assert len(calls) == 2  # one for each block
    assert all((inputs.q_weight is None) == (qk_norm is None) == (inputs.cos is None) for inputs in calls)
    exact = run(model, "torch", monkeypatch)
    assert len(calls) == 2
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    if qk_norm is not None:
        for mine, theirs in zip(run(model, "triton", monkeypatch, compiled=True), ours, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
