"""Optimizers against closed forms and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmdit.errors import UserError
from mmdit.training.optimizers import (
    MuonWithAdamW,
    OptimizerConfig,
    _from_blocks,
    _to_blocks,
    is_hidden_matrix,
    learning_rate_factor,
    make_lr_scheduler,
    make_optimizer,
    orthogonalize,
    square_blocks,
)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalize_keeps_singular_vectors_and_flattens_singular_values(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices)
    # the quintic brings singular values to about 0.7 … 1.2, not to 1: in the basis of the SVD it stays diagonal
    diagonal = u.mT @ result @ vh.mT
    values = torch.diagonal(diagonal, dim1=-2, dim2=-1)
    assert (diagonal - torch.diag_embed(values)).abs().max() < 1e-4
    assert values.min() > 0.3
    assert values.max() < 1.3


@pytest.mark.parametrize(
    ("shape", "expected"), [((12, 4), (3, 4, 4)), ((4, 16), (4, 4, 4)), ((6, 4), (1, 6, 4)), ((5, 5), (1, 5, 5))]
)
def test_fused_matrices_are_split_into_square_blocks(shape: tuple[int, int], expected: tuple[int, int, int]) -> None:
    assert square_blocks(torch.Size(shape)) == expected
    matrix = torch.arange(float(shape[0] * shape[1])).view(shape)
    blocks = _to_blocks(matrix)
    assert tuple(blocks.shape) == expected
    assert torch.equal(_from_blocks(blocks, matrix.shape), matrix)


def test_blocks_of_a_fused_projection_are_q_k_and_v() -> None:
    q, k, v = (torch.full((4, 4), float(i)) for i in range(3))
    assert torch.equal(_to_blocks(torch.cat([q, k, v])), torch.stack([q, k, v]))
    assert torch.equal(_to_blocks(torch.cat([q, k, v], dim=1)), torch.stack([q, k, v]))


def test_a_convolution_is_one_matrix() -> None:
    kernel = torch.randn(8, 6, 3, 3)
    assert square_blocks(kernel.shape) == (1, 8, 54)
    assert torch.equal(_to_blocks(kernel)[0], kernel.flatten(1))
    assert torch.equal(_from_blocks(_to_blocks(kernel), kernel.shape), kernel)
    assert is_hidden_matrix("decoder.conv.weight", torch.zeros(64, 128, 3, 3))
    assert not is_hidden_matrix("decoder.conv_out.weight", torch.zeros(48, 128, 3, 3))


def test_muon_step_has_the_documented_size_and_direction() -> None:
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = MuonWithAdamW([{"params": [weight], "muon": True, "lr": 0.1}], nesterov=False)
    gradient = torch.diag(torch.arange(1.0, 9.0))
    weight.grad = gradient
    optimizer.step()
    expected = -0.1 * 0.2 * 8**0.5 * orthogonalize(0.05 * gradient[None])[0]
    torch.testing.assert_close(weight.detach(), expected)


def test_adamw_half_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(5))
    theirs.data.copy_(ours.data)
    a = MuonWithAdamW([{"params": [ours], "muon": False, "lr": 0.01}], betas=(0.9, 0.95), weight_decay=0.1)
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(4):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_takes_the_matrices_of_blocks_only() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "head": nn.Linear(4, 4)})
    chosen = {name for name, p in model.named_parameters() if is_hidden_matrix(name, p)}
    assert chosen == {"blocks.0.weight"}
    optimizer = make_optimizer(model, OptimizerConfig(name="muon"))
    sizes = {bool(group["muon"]): len(group["params"]) for group in optimizer.param_groups}
    assert sizes == {True: 1, False: 3}


@pytest.mark.parametrize(("shape", "short"), [((6, 24), 6), ((24, 6), 6), ((6, 10), 6)])
def test_whole_matrices_are_orthogonalised_as_they_are(shape: tuple[int, int], short: int) -> None:
    """Against the SVD: with many steps the update is 0.2 sqrt(max dim) U Vᵀ, up to the quintic's 0.7 to 1.2."""
    torch.manual_seed(0)
    gradient, weight = torch.randn(shape), nn.Parameter(torch.zeros(shape))
    optimizer = MuonWithAdamW([{"params": [weight], "muon": True, "lr": 0.1}], blocks="whole", num_steps=8)
    weight.grad = gradient
    optimizer.step()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    diagonal = u.mT @ (weight.detach() / (-0.1 * 0.2 * max(shape) ** 0.5)) @ vh.mT
    assert diagonal.diagonal().numel() == short
    assert (diagonal - torch.diag(diagonal.diagonal())).abs().max() < 1e-4
    assert diagonal.diagonal().min() > 0.65
    assert diagonal.diagonal().max() < 1.25
    squares = MuonWithAdamW(
        [{"params": [other := nn.Parameter(torch.zeros(shape))], "muon": True, "lr": 0.1}], num_steps=8
    )
    other.grad = gradient
    squares.step()  # the same size of the entries, whatever is cut
    assert float(weight.detach().norm() / other.detach().norm()) == pytest.approx(1, abs=0.15)


def test_fewer_steps_and_matrices_for_adamw_are_settings() -> None:
    def model() -> nn.ModuleDict:
        torch.manual_seed(0)
        block = nn.ModuleDict({"mlp": nn.Linear(4, 8, bias=False), "modulation": nn.Linear(4, 24, bias=False)})
        return nn.ModuleDict({"blocks": nn.ModuleList([block])})

    config = OptimizerConfig(name="muon", muon_steps=3, muon_except=["modulation"], lr=0.01, muon_lr=0.1)
    ours = model()
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    optimizer = make_optimizer(ours, config)
    gradients = {name: torch.randn(p.shape) for name, p in ours.named_parameters()}
    for name, p in ours.named_parameters():
        p.grad = gradients[name].clone()
    optimizer.step()
    change = {name: p.detach() - before[name] for name, p in ours.named_parameters()}
    # Nesterov's first update is (1 - 0.95²) of the gradient, whose size the orthogonalisation takes away
    expected = torch.cat(
        [orthogonalize(half[None], num_steps=3)[0] for half in gradients["blocks.0.mlp.weight"].split(4)]
    )
    torch.testing.assert_close(change["blocks.0.mlp.weight"], -0.1 * 0.2 * 4**0.5 * expected, atol=1e-6, rtol=1e-4)
    name = "blocks.0.modulation.weight"
    torch.testing.assert_close(change[name], -0.01 * gradients[name].sign(), atol=1e-5, rtol=0)


def test_learning_rate_factor_warms_up_and_decays() -> None:
    config = OptimizerConfig(warmup_steps=4, schedule="linear", decay_share=0.5)
    factors = [learning_rate_factor(step, 20, config) for step in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[10] == 1.0
    assert factors[15] == pytest.approx(0.5)
    assert factors[20] == 0.0
    cosine = OptimizerConfig(schedule="cosine", decay_share=1.0)
    assert learning_rate_factor(10, 20, cosine) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.7, 1.0), (0.85, 0.5), (0.94, 0.2), (1.2, 0.0)])
def test_learning_rate_decays_with_the_time_whatever_the_step(share: float, expected: float) -> None:
    config = OptimizerConfig(schedule="linear", decay_share=0.3)
    assert learning_rate_factor(5, 1_000_000, config, share) == pytest.approx(expected)
    assert learning_rate_factor(95, 100, config, share) == pytest.approx(min(expected, 1 / 6)), (
        "whichever end is nearer"
    )
    assert learning_rate_factor(5, 100, OptimizerConfig(schedule="linear", decay_share=0.0), 0.9) == 1.0


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (OptimizerConfig(name="adamm"), "unknown optimizer.name 'adamm': did you mean 'adamw'"),
        (OptimizerConfig(lr=0.0), "optimizer.lr is 0.0"),
        (OptimizerConfig(schedule="step"), "unknown optimizer.schedule 'step'"),
        (OptimizerConfig(name="muon", muon_blocks="cube"), "unknown optimizer.muon_blocks 'cube'"),
        (OptimizerConfig(name="muon", muon_except=["adaln"]), "muon_except 'adaln'.*blocks.weight"),
        (OptimizerConfig(name="muon", muon_except=[""]), "muon_except ''.*blocks.weight"),
    ],
)
def test_bad_settings_are_named(config: OptimizerConfig, named: str) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    with pytest.raises(UserError, match=named):
        make_lr_scheduler(make_optimizer(model, config), config, 10)
