from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdit.models.embeddings import (
    MultimodalTimestepEmbedding,
    RoleEmbedding,
    RotaryPosition,
    SinCosPosition,
    sinusoid,
)
from mmdit.task import Role


def test_sinusoid_is_dits() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    out = sinusoid(t, 8)
    for i in range(4):
        frequency = 10000 ** (-i / 4)
        torch.testing.assert_close(out[:, i], torch.cos(t * frequency))
        torch.testing.assert_close(out[:, 4 + i], torch.sin(t * frequency))


def test_timestep_embedding_is_shared_then_fused() -> None:
    torch.manual_seed(0)
    embed = MultimodalTimestepEmbedding(num_modalities=3, hidden_size=8)
    t = torch.tensor([[0.1, 0.5, 0.1], [0.5, 0.1, 0.9]])
    single = embed.mlp(sinusoid(t, 256))  # (B, M, D / 2)
    assert single.shape == (2, 3, 4)
    torch.testing.assert_close(single[0, 0], single[1, 1])  # one MLP: the same t gives the same vector
    torch.testing.assert_close(embed(t), embed.fuse(torch.cat([single[:, 0], single[:, 1], single[:, 2]], dim=-1)))


def test_role_embedding_is_base_plus_table() -> None:
    embed = RoleEmbedding(num_modalities=2, hidden_size=3)
    torch.nn.init.normal_(embed.base)
    torch.nn.init.normal_(embed.table)
    roles = torch.tensor([[Role.CONDITION, Role.ABSENT], [Role.UNSUPERVISED, Role.GENERATE]])
    out = embed(roles)
    torch.testing.assert_close(out[0], embed.base + embed.table[0, Role.CONDITION] + embed.table[1, Role.ABSENT])
    # the network can't tell an unsupervised modality from a generated one
    torch.testing.assert_close(out[1], embed.base + embed.table[0, Role.GENERATE] + embed.table[1, Role.GENERATE])


def test_role_embedding_holds_mmgens_task_table() -> None:
    """M + 1 entries: 0 = joint, i + 1 = modality i is the condition."""
    m, d = 4, 6
    table = torch.randn(m + 1, d, generator=torch.Generator().manual_seed(0))
    embed = RoleEmbedding(m, d)
    with torch.no_grad():
        embed.base.copy_(table[0])
        embed.table.zero_()
        embed.table[:, Role.CONDITION] = table[1:] - table[0]
    torch.testing.assert_close(embed(torch.full((1, m), int(Role.GENERATE)))[0], table[0])
    torch.testing.assert_close(embed(torch.full((1, m), int(Role.UNSUPERVISED)))[0], table[0])
    given = torch.where(torch.eye(m, dtype=torch.bool), int(Role.CONDITION), int(Role.GENERATE))
    torch.testing.assert_close(embed(given), table[1:])


def mae_table(dim: int, grid: int) -> np.ndarray:
    """Write MAE's table from its description: half of the width for w, half for h, sin then cos."""
    out = np.zeros((grid * grid, dim))
    quarter = dim // 4
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                omega = 1.0 / 10000 ** (i / quarter)
                out[row * grid + column, i] = math.sin(column * omega)
                out[row * grid + column, quarter + i] = math.cos(column * omega)
                out[row * grid + column, 2 * quarter + i] = math.sin(row * omega)
                out[row * grid + column, 3 * quarter + i] = math.cos(row * omega)
    return out


def test_sincos_is_maes_table_at_the_trained_size() -> None:
    table, rope = SinCosPosition(hidden_size=16, num_heads=2, base_size=4)(torch.zeros(1, 16, 16), (4, 4))
    assert rope is None
    torch.testing.assert_close(table[0], torch.from_numpy(mae_table(16, 4)).float())


def test_other_grids_span_the_trained_coordinates() -> None:
    position = SinCosPosition(hidden_size=16, num_heads=2, base_size=4)
    trained = position(torch.zeros(1, 16, 16), (4, 4))[0][0].view(4, 4, 16)
    wide = position(torch.zeros(1, 32, 16), (4, 8))[0][0].view(4, 8, 16)
    torch.testing.assert_close(wide[:, ::2], trained)  # every second of 8 columns is one of 4


def scores(q: Tensor, k: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """q · k after rotating the pairs (2i, 2i + 1), as complex numbers."""
    turn = torch.complex(rope[0][:, ::2], rope[1][:, ::2])
    q_turned = torch.view_as_complex(q.view(-1, 2)) * turn
    k_turned = torch.view_as_complex(k.view(-1, 2)) * turn
    return torch.einsum("id,jd->ij", q_turned, k_turned.conj()).real


def test_rope_depends_on_offsets_only() -> None:
    h, w, d = 3, 4, 8
    x, rope = RotaryPosition(hidden_size=16, num_heads=2, base_size=4)(torch.zeros(1, h * w, 16), (h, w))
    assert (x == 0).all()
    assert rope[0].shape == rope[1].shape == (h * w, d)
    generator = torch.Generator().manual_seed(0)
    table = scores(torch.randn(d, generator=generator), torch.randn(d, generator=generator), rope)
    table = table.view(h, w, h, w)
    torch.testing.assert_close(table[0, 0, 1, 2], table[1, 1, 2, 3])
    torch.testing.assert_close(table[1, 0, 2, 1], table[0, 2, 1, 3])
    assert (table[0, 0, 1, 0] - table[0, 0, 0, 1]).abs() > 1e-3  # rows and columns are told apart


def test_rope_turns_the_first_half_by_row_and_the_second_by_column() -> None:
    _, (cos, sin) = RotaryPosition(hidden_size=8, num_heads=1, base_size=4)(torch.zeros(1, 16, 8), (4, 4))
    row, column = 2, 3
    omega = [1.0, 0.01]
    angles = [row * omega[0], row * omega[0], row * omega[1], row * omega[1]]
    angles += [column * omega[0], column * omega[0], column * omega[1], column * omega[1]]
    torch.testing.assert_close(cos[row * 4 + column], torch.tensor(angles).cos())
    torch.testing.assert_close(sin[row * 4 + column], torch.tensor(angles).sin())


def test_widths_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="hidden_size 6 must be a multiple of 4"):
        SinCosPosition(hidden_size=6, num_heads=1, base_size=4)
    with pytest.raises(ValueError, match="head dimension 6 must be a multiple of 4"):
        RotaryPosition(hidden_size=12, num_heads=2, base_size=4)
