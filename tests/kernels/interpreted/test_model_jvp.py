"""The whole model under torch.func.jvp, as MeanFlow takes it: along the latents and the timesteps."""

from __future__ import annotations

import pytest
import torch
from mmdit_kernels.attention import jvp as attention_jvp
from mmdit_kernels.testing import relative_rms
from torch import Tensor
from torch.func import jvp

pytest.importorskip("diffusers")

from mmdit.models.transformer import MultimodalDiT

B, M, C, SIZE = 2, 2, 4, 4


def make_model(qk_norm: str | None, position_embedding: str) -> MultimodalDiT:
    torch.manual_seed(0)
    model = MultimodalDiT(("rgb", "depth"), sample_size=SIZE, hidden_size=48, depth=1, num_heads=2, num_classes=3,
                          class_dropout_prob=0.0, qk_norm=qk_norm, position_embedding=position_embedding)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # gates and heads start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def run(model: MultimodalDiT, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """Return the velocity, its tangent, and the tangent's product with a random vector from reverse mode alone."""
    torch.manual_seed(1)
    shape = (B, M, C, SIZE, SIZE)
    latents, latents_dot, vector = (torch.randn(shape).to(dtype) for _ in range(3))
    timesteps, timesteps_dot = torch.rand(B, M).to(dtype), torch.ones(B, M).to(dtype)
    conditioning = model.conditioner(torch.tensor([0, 2]))

    def velocity(latents: Tensor, timesteps: Tensor) -> Tensor:
        return model(latents, timesteps, torch.tensor([[0, 0], [1, 0]]), conditioning, return_dict=False)[0]

    out, slope = jvp(velocity, (latents, timesteps), (latents_dot, timesteps_dot))
    leaves = [latents.requires_grad_(), timesteps.requires_grad_()]
    grads = torch.autograd.grad(velocity(*leaves), leaves, vector)
    product = sum((grad * dot).sum() for grad, dot in zip(grads, (latents_dot, timesteps_dot), strict=True))
    difference = (slope * vector).sum() - product
    return out.detach(), slope.detach(), (difference / product).item()


@pytest.mark.parametrize(("qk_norm", "position_embedding"), [(None, "sincos"), ("rms_norm", "rope")])
def test_the_tangent_of_the_model(
    qk_norm: str | None, position_embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 on PyTorch it agrees with reverse mode; on the kernels, and on PyTorch in float32, with that."""
    model = make_model(qk_norm, position_embedding)
    calls = []
    launch = attention_jvp.jvp_launch
    monkeypatch.setattr(attention_jvp, "jvp_launch", lambda *arguments: calls.append(1) or launch(*arguments))
    results = {}
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float32), ("torch", torch.float64)):
        monkeypatch.setenv("MMDIT_KERNELS", backend)
        results[backend, dtype] = run(model.to(dtype), dtype)
        assert len(calls) == 1
    out, slope, _ = results["torch", torch.float64]
    for (_, dtype), (other, other_slope, disagreement) in results.items():
        assert abs(disagreement) < (1e-5 if dtype == torch.float32 else 1e-6)  # timesteps are embedded in float32
        assert relative_rms(other, out) < 2e-6
        assert relative_rms(other_slope, slope) < 2e-6


def test_the_gradient_of_a_mean_flow_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """arXiv 2505.13447, algorithm 1: every parameter's gradient is that on PyTorch."""
    model = make_model("rms_norm", "rope")
    grads = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("MMDIT_KERNELS", backend)
        torch.manual_seed(1)
        latents, noise = (torch.randn(B, M, C, SIZE, SIZE) for _ in range(2))
        timesteps, roles = torch.rand(B, M), torch.zeros(B, M, dtype=torch.long)
        conditioning = model.conditioner(torch.tensor([0, 2]))

        def velocity(latents: Tensor, timesteps: Tensor) -> Tensor:
            return model(latents, timesteps, roles, conditioning, return_dict=False)[0]  # noqa: B023

        u, slope = jvp(velocity, (latents, timesteps), (noise - latents, torch.ones(B, M)))
        loss = (u - (noise - latents - 0.3 * slope).detach()).square().mean()
        inputs = list(model.parameters())
        grads.append([loss, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
