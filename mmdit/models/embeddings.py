"""Embeddings of timesteps, roles and positions.

B batch, M modalities, D width, T tokens on an (h, w) grid, d head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmdit.errors import UserError
from mmdit.models.layers import zero_linear
from mmdit.task import Role, embedding_roles


def sinusoid_frequencies(dim: int, device: torch.device | None = None, max_period: float = 10000.0) -> Tensor:
    """w_i = max_period^(-2i / dim), (dim / 2,), float32."""
    half = dim // 2
    return torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=device) / half)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """[cos(t w_i), sin(t w_i)], as in DiT; t of any shape -> (..., dim), float32."""
    angles = t[..., None].float() * sinusoid_frequencies(dim, t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _reset_sinusoid_layers(mlp: nn.Module) -> None:
    for layer in mlp.children():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)


class MultimodalTimestepEmbedding(nn.Module):
    """(B, M) timesteps in [0, 1] -> (B, D): one MLP shared by the modalities, then one over their concatenation (MMGen)."""

    frequency_dim = 256

    def __init__(self, num_modalities: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.frequency_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size // 2)
        )
        self.fuse = nn.Sequential(
            nn.Linear(num_modalities * (hidden_size // 2), hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps (B, M) -> (B, D)."""
        frequencies = sinusoid(timesteps, self.frequency_dim).to(next(self.mlp.parameters()).dtype)  # (B, M, 256)
        return self.fuse(self.mlp(frequencies).flatten(1))  # (B, D)

    def reset_parameters(self) -> None:
        """DiT's initialisation of the layers that read sinusoids."""
        _reset_sinusoid_layers(self.mlp)

    def start_at_zero(self) -> None:
        """Let the embedding be zero for every timestep, until it is trained."""
        zero_linear(self.fuse[-1])


class SummedTimestepEmbedding(nn.Module):
    """(B, M) timesteps in [0, 1] -> (B, D): an MLP for each modality, their results summed.

    For M = 1 this is the embedding of DiT, SiT and REPA. A model with more modalities can start as one of these: the
    MLPs of the new modalities begin with a last layer of zeros.
    """

    frequency_dim = 256

    def __init__(self, num_modalities: int, hidden_size: int) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(self.frequency_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
            for _ in range(num_modalities)
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps (B, M) -> (B, D)."""
        frequencies = sinusoid(timesteps, self.frequency_dim).to(next(self.mlps.parameters()).dtype)  # (B, M, 256)
        embedded = [mlp(x) for mlp, x in zip(self.mlps, frequencies.unbind(1), strict=True)]
        return torch.stack(embedded).sum(0)  # (B, D)

    def reset_parameters(self) -> None:
        """DiT's initialisation of the layers that read sinusoids."""
        for mlp in self.mlps:
            _reset_sinusoid_layers(mlp)

    def start_at_zero(self) -> None:
        """Let the embedding be zero for every timestep, until it is trained."""
        for mlp in self.mlps:
            zero_linear(list(mlp.children())[-1])


TIMESTEP_EMBEDDINGS: dict[str, type[MultimodalTimestepEmbedding] | type[SummedTimestepEmbedding]] = {
    "fused": MultimodalTimestepEmbedding,
    "sum": SummedTimestepEmbedding,
}


class RoleEmbedding(nn.Module):
    """(B, M) roles -> (B, D): a base vector plus the sum over modalities of a (modality, role) table.

    MMGen's M + 1 task entries are the special case base = entry 0, table[m, CONDITION] = entry m + 1 - entry 0 and
    zeros elsewhere; every other subset of conditions is expressible too.
    """

    def __init__(self, num_modalities: int, hidden_size: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(hidden_size))
        self.table = nn.Parameter(torch.zeros(num_modalities, len(Role), hidden_size))

    def forward(self, roles: Tensor) -> Tensor:
        """Roles (B, M) -> (B, D)."""
        modalities = torch.arange(roles.shape[1], device=roles.device)
        return self.base + self.table[modalities, embedding_roles(roles)].sum(dim=1)  # (B, D)

    def reset_parameters(self) -> None:
        """normal(0.02), as DiT's embedding of the class."""
        nn.init.normal_(self.base, std=0.02)
        nn.init.normal_(self.table, std=0.02)


def _grid_coordinates(grid: tuple[int, int], base_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each token, (T,) each, stretched so that any grid spans the trained 0 … base_size.

    float64, and float32 on Apple's GPUs, which have nothing wider.
    """
    h, w = grid
    dtype = torch.float32 if device.type == "mps" else torch.float64
    rows = torch.arange(h, dtype=dtype, device=device) * (base_size / h)
    columns = torch.arange(w, dtype=dtype, device=device) * (base_size / w)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return row.flatten(), column.flatten()


def _angles(positions: Tensor, num_frequencies: int) -> Tensor:
    frequencies = 10000.0 ** (
        -torch.arange(num_frequencies, dtype=positions.dtype, device=positions.device) / num_frequencies
    )
    return positions[:, None] * frequencies  # (T, num_frequencies)


class SinCosPosition(nn.Module):
    """Fixed 2-D sine-cosine table added to the tokens (MAE, DiT): the width coordinate first, sin before cos."""

    def __init__(self, hidden_size: int, num_heads: int, base_size: int) -> None:
        super().__init__()
        if hidden_size % 4:
            raise UserError(f"hidden_size {hidden_size} must be a multiple of 4 for 2-D sine-cosine positions")
        self.hidden_size, self.base_size = hidden_size, base_size

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, None]:
        """Add the table of a grid (h, w) to x (B, T, D); attention gets no rope (None)."""
        row, column = _grid_coordinates(grid, self.base_size, x.device)
        angles = [_angles(column, self.hidden_size // 4), _angles(row, self.hidden_size // 4)]
        table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=-1)
        return x + table.to(x.dtype), None


class RotaryPosition(nn.Module):
    """2-D rotary embedding of q and k (RoFormer, arXiv 2104.09864): first half of each head by row, second by column."""

    def __init__(self, hidden_size: int, num_heads: int, base_size: int) -> None:
        super().__init__()
        self.head_dim, self.base_size = hidden_size // num_heads, base_size
        if self.head_dim % 4:
            raise UserError(f"head dimension {self.head_dim} must be a multiple of 4 for 2-D rotary positions")

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Leave x (B, T, D) unchanged; give attention (cos, sin), each (T, d) float32."""
        row, column = _grid_coordinates(grid, self.base_size, x.device)
        angles = torch.cat([_angles(row, self.head_dim // 4), _angles(column, self.head_dim // 4)], dim=-1)
        angles = angles.repeat_interleave(2, dim=-1)  # (T, d), one angle per pair (2i, 2i + 1)
        return x, (angles.cos().float(), angles.sin().float())


POSITION_EMBEDDINGS: dict[str, type[SinCosPosition] | type[RotaryPosition]] = {
    "sincos": SinCosPosition,
    "rope": RotaryPosition,
}
