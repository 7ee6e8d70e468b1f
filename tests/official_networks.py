"""The official networks of MMGen, REPA and SiT by plain operations on their own state dicts, and random ones of these."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(
    format: str,
    hidden_size: int = 32,
    depth: int = 2,
    num_modalities: int = 4,
    grid: int = 4,
    num_labels: int = 6,
    learn_sigma: bool = False,
    seed: int = 0,
) -> State:
    """Names and shapes as in the official code (C = 4, p = 2), random values everywhere but in ``pos_embed``."""
    d, m = hidden_size, num_modalities if format == "mmgen" else 1
    linears = {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d // 2 if format == "mmgen" else d, d)}
    if format == "mmgen":
        linears |= {"t_embedder.mlp_fused.0": (d, m * d // 2), "t_embedder.mlp_fused.2": (d, d)}
    for i in range(depth):
        linears |= {f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d)}
        linears |= {f"blocks.{i}.mlp.fc1": (4 * d, d), f"blocks.{i}.mlp.fc2": (d, 4 * d)}
        linears |= {f"blocks.{i}.adaLN_modulation.1": (6 * d, d)}
    if format != "sit":
        linears |= {"projectors.0.0": (24, d), "projectors.0.2": (24, 24), "projectors.0.4": (12, 24)}
    for head in [f"lis_final_layer.{i}" for i in range(m)] if format == "mmgen" else ["final_layer"]:
        linears |= {f"{head}.linear": (32 if learn_sigma else 16, d), f"{head}.adaLN_modulation.1": (2 * d, d)}
    shapes = {"x_embedder.proj.weight": (d, 4 * m, 2, 2), "x_embedder.proj.bias": (d,)}
    shapes |= {"y_embedder.embedding_table.weight": (num_labels, d)}
    if format == "mmgen":
        shapes |= {"taskcond_embedder.embedding_table.weight": (m + 1, d)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    state = {key: 0.15 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {"pos_embed": _positions(d, grid)[None].float(), **state}


def _positions(d: int, grid: int) -> Tensor:
    omega = 10000 ** (-torch.arange(d // 4, dtype=torch.float64) / (d // 4))
    row, column = (c.flatten()[:, None] * omega for c in torch.meshgrid(*[torch.arange(grid)] * 2, indexing="ij"))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)


def official_network(
    state: State, x: Tensor, t: Tensor, labels: Tensor, tasks: Tensor | None = None, num_heads: int = 2
) -> Tensor:
    """x (B, M * C, H, W), t (B, M), labels (B,), tasks (B,) -> the official output (B, M * C, H, W), in float64."""
    w = {key: tensor.double() for key, tensor in state.items()}

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        value = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return value * (1 + scale[:, None]) + shift[:, None]

    b, _, height, width = x.shape
    h = F.conv2d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]

    angle = t.double()[..., None] * torch.exp(-math.log(10000) * torch.arange(128) / 128).double()
    c = linear(F.silu(linear(torch.cat([angle.cos(), angle.sin()], -1), "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = c.flatten(1)
    if "t_embedder.mlp_fused.0.weight" in w:
        c = linear(F.silu(linear(c, "t_embedder.mlp_fused.0")), "t_embedder.mlp_fused.2")
    c = c + w["y_embedder.embedding_table.weight"][labels]
    if tasks is not None:
        c = c + w["taskcond_embedder.embedding_table.weight"][tasks]

    depth = len({key.split(".")[1] for key in w if key.startswith("blocks.")})
    for i in range(depth):
        modulation = linear(F.silu(c), f"blocks.{i}.adaLN_modulation.1").chunk(6, -1)
        q, k, v = (
            linear(norm(h, *modulation[:2]), f"blocks.{i}.attn.qkv").view(b, h.shape[1], 3, num_heads, -1).unbind(2)
        )
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        attended = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
        h = h + modulation[2][:, None] * linear(attended, f"blocks.{i}.attn.proj")
        wide = F.gelu(linear(norm(h, *modulation[3:5]), f"blocks.{i}.mlp.fc1"), approximate="tanh")
        h = h + modulation[5][:, None] * linear(wide, f"blocks.{i}.mlp.fc2")

    outputs = []
    for head in sorted({key.rsplit(".linear.", 1)[0] for key in w if "final_layer" in key and ".linear." in key}):
        shift, scale = linear(F.silu(c), f"{head}.adaLN_modulation.1").chunk(2, -1)
        patches = linear(norm(h, shift, scale), f"{head}.linear").view(b, height // 2, width // 2, 2, 2, -1)
        image = torch.einsum("nhwpqc->nchpwq", patches).reshape(b, -1, height, width)
        outputs.append(image[:, :4])  # beyond: the variance that SiT learns and never uses
    return torch.cat(outputs, 1)
