"""Checkpoints of the official codes: what their networks' keys are called, and what their numbers mean; ``FORMATS``.

Time runs the same way in MMGen and REPA as here, t = 0 data and t = 1 noise. SiT's runs the other way and is folded into
the weights. Its velocity, data - noise, changes sign with the head. Its timestep is s = 1 - t, and by the angle-addition
formulas the sinusoids of 1 - t are a linear map of those of t,

    cos((1 - t) w) = cos w cos(t w) + sin w sin(t w),    sin((1 - t) w) = sin w cos(t w) - cos w sin(t w),

which the first linear layer of the timestep MLP absorbs. So a converted model is like any other, with no flag.

D width, M modalities, F frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmdit.models.embeddings import SummedTimestepEmbedding, sinusoid_frequencies
from mmdit.task import Role

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class NetworkShape:
    """Numbers read off a state dict; ``head_channels`` is 2C where the head also predicts a variance (learn_sigma)."""

    hidden_size: int
    num_modalities: int
    in_channels: int
    head_channels: int
    patch_size: int
    num_tokens: int
    depth: int
    mlp_size: int
    num_labels: int
    projector: tuple[int, int] | None  # hidden and output width


class CheckpointFormat:
    """One code's checkpoints.

    Attributes:
        title: for messages.
        mark: how one of its keys begins, which no format before it in ``FORMATS`` has.
        has_projector: whether the network has REPA's.
        may_have_variance: whether the head may predict one beside the velocity.
        time_embedding: ``MultimodalDiT``'s name of the timesteps' embedding.
        time_mlp: where the first MLP of that embedding is here.
    """

    title: ClassVar[str]
    mark: ClassVar[str]
    has_projector: ClassVar[bool]
    may_have_variance: ClassVar[bool] = True
    time_embedding: ClassVar[str] = "sum"
    time_mlp: ClassVar[str] = "time_embed.mlps.0."

    def joined(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
        """The state with its blocks in one part, and how many were in the first of two, 0 = there is one."""
        return state, 0

    def heads(self, state: Mapping[str, Tensor]) -> list[str]:
        """Names of the heads, one for each modality."""
        return ["final_layer"]

    def time_linears(self, shape: NetworkShape) -> dict[str, tuple[int, int]]:
        """Linear layers behind the first of the timesteps' embedding -> (rows, columns)."""
        return {"t_embedder.mlp.2": (shape.hidden_size, shape.hidden_size)}

    def tables(self, shape: NetworkShape) -> Shapes:
        """Shapes of weights that other formats lack."""
        return {}

    def roles(self, state: Mapping[str, Tensor], base: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Our embedding of roles, base (D,) and table (M, roles, D), which are given as zeros."""
        return base, table

    def in_our_time(self, weights: dict[str, Tensor]) -> None:
        """Let weights, as they are named here, mean our direction of time: here they do."""


class MMGen(CheckpointFormat):
    title = "MMGen, several modalities (arXiv 2503.20644)"
    mark = "lis_final_layer."
    has_projector = True
    may_have_variance = False
    time_embedding = "fused"
    time_mlp = "time_embed.mlp."

    def heads(self, state: Mapping[str, Tensor]) -> list[str]:
        return [
            f"{self.mark}{i}" for i in range(len({key.split(".")[1] for key in state if key.startswith(self.mark)}))
        ]

    def time_linears(self, shape: NetworkShape) -> dict[str, tuple[int, int]]:
        d, half = shape.hidden_size, shape.hidden_size // 2
        fused = {"t_embedder.mlp_fused.0": (d, shape.num_modalities * half), "t_embedder.mlp_fused.2": (d, d)}
        return {"t_embedder.mlp.2": (half, d), **fused}

    def tables(self, shape: NetworkShape) -> Shapes:
        return {"taskcond_embedder.embedding_table.weight": (shape.num_modalities + 1, shape.hidden_size)}

    def roles(self, state: Mapping[str, Tensor], base: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Its table of tasks is (M + 1, D): 0 = joint, m + 1 = modality m is the condition."""
        tasks = state["taskcond_embedder.embedding_table.weight"]
        table[:, Role.CONDITION] = (tasks[1:] - tasks[0]).to(table)
        return tasks[0].to(base).clone(), table


class REPA(CheckpointFormat):
    title = "REPA, RGB alone (arXiv 2410.06940)"
    mark = "projectors."
    has_projector = True

    def joined(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
        """In its first release the blocks after the alignment were ``decoder_blocks``, from 0."""
        if not any(key.startswith("decoder_blocks.") for key in state):
            return state, 0
        first_part = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        joined = {}
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            number, _, name = rest.partition(".")
            is_second = part == "decoder_blocks" and number.isdigit()
            joined[f"blocks.{int(number) + first_part}.{name}" if is_second else key] = tensor
        return joined, first_part


class SiT(CheckpointFormat):
    title = "SiT, RGB alone (arXiv 2401.08740)"
    mark = "final_layer.linear.weight"
    has_projector = False

    def in_our_time(self, weights: dict[str, Tensor]) -> None:
        for key in ("head.linears.0.weight", "head.linears.0.bias"):
            weights[key] = -weights[key]
        first = f"{self.time_mlp}0.weight"
        weights[first] = _reverse_time(weights[first])


# In the order in which they are told apart.
FORMATS: dict[str, CheckpointFormat] = {"mmgen": MMGen(), "repa": REPA(), "sit": SiT()}


def expected_shapes(format: CheckpointFormat, s: NetworkShape, heads: list[str]) -> Shapes:
    """Every key of the official network and its shape."""
    d, p, m = s.hidden_size, s.patch_size, s.num_modalities
    linears = {"t_embedder.mlp.0": (d, SummedTimestepEmbedding.frequency_dim), **format.time_linears(s)}
    for i in range(s.depth):
        block = f"blocks.{i}."
        linears |= {block + "attn.qkv": (3 * d, d), block + "attn.proj": (d, d)}
        linears |= {block + "mlp.fc1": (s.mlp_size, d), block + "mlp.fc2": (d, s.mlp_size)}
        linears |= {block + "adaLN_modulation.1": (6 * d, d)}
    if s.projector is not None:
        wide, out = s.projector
        linears |= {"projectors.0.0": (wide, d), "projectors.0.2": (wide, wide), "projectors.0.4": (out, wide)}
    for head in heads:
        linears |= {f"{head}.linear": (p * p * s.head_channels, d), f"{head}.adaLN_modulation.1": (2 * d, d)}
    shapes: Shapes = {
        "pos_embed": (1, s.num_tokens, d),
        "x_embedder.proj.weight": (d, m * s.in_channels, p, p),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (s.num_labels, d),
        **format.tables(s),
    }
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


def _reverse_time(weight: Tensor) -> Tensor:
    """First layer over [cos(s w), sin(s w)], s = 1 - t -> the same function of [cos(t w), sin(t w)]; (D, 2F)."""
    w = sinusoid_frequencies(weight.shape[1]).double()
    of_cos, of_sin = weight.double().chunk(2, dim=1)
    reversed_cos = of_cos * w.cos() + of_sin * w.sin()
    reversed_sin = of_cos * w.sin() - of_sin * w.cos()
    return torch.cat([reversed_cos, reversed_sin], dim=1).to(weight.dtype)
