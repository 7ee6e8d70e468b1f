"""Start a model from a trained one that has fewer modalities or simpler blocks, and compute the same to begin with.

What the new modalities add is exactly zero at first, whatever their latents, timesteps and roles: their columns of the
patch embedding, the way of their timesteps into the embedding, their entries of the role table and the last layer of
their heads. Each of these receives a gradient from the first step on. So the larger model begins as the smaller one,
for the modalities of the smaller one. The same holds for what a block adds to the block it derives from, and for a second time.
A conditioner of another kind begins with its random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.models.blocks import BLOCKS, Block
from mmdit.models.transformer import MultimodalDiT

# Config keys that must be equal for the weights to mean the same.
_SAME = (
    "in_channels",
    "patch_size",
    "hidden_size",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qk_norm",
    "position_embedding",
    "time_embedding",
    "prediction",
)


def start_from(network: MultimodalDiT, trained: MultimodalDiT) -> None:
    """Copy a trained network's weights into one with the same or more modalities, in any order.

    Where the classes differ in number, every class begins as the null class. An alignment projector is copied where both have
    one of the same shape, a head for internal guidance where both have one behind the same block; ``network`` keeps its own
    otherwise.

    Raises:
        UserError: the networks differ in anything but modalities, prompts, size of the latents and projector; the trained one
            has a modality or a second time that ``network`` lacks, or a block that the network's doesn't derive from.
    """
    ours, theirs = network.config, trained.config
    for key in _SAME:
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(f"{key} is {getattr(theirs, key)!r} in the trained model and {getattr(ours, key)!r} here")
    if not issubclass(BLOCKS[ours.block], BLOCKS[theirs.block]):
        raise UserError(
            f"block is {theirs.block!r} in the trained model and {ours.block!r} here, which does not extend it"
        )
    if theirs.second_time and not ours.second_time:
        raise UserError("second_time is true in the trained model and false here")
    lacking = [name for name in theirs.modalities if name not in ours.modalities]
    if lacking:
        raise UserError(
            f"the trained model has {', '.join(lacking)}, this one only {', '.join(ours.modalities)}: "
            "modalities can be added, not taken away"
        )
    rows = [list(ours.modalities).index(name) for name in theirs.modalities]
    network.load_state_dict(_widened(network.state_dict(), trained.state_dict(), rows, ours, theirs))
    network.conditioner.start_from(trained.conditioner)
    if ours.block != theirs.block:
        for block in network.blocks:
            assert isinstance(block, Block)
            block.start_as_base()
    if network.next_time_embed is not None and not theirs.second_time:
        network.next_time_embed.start_at_zero()


@torch.no_grad()
def _widened(
    own: Mapping[str, Tensor], trained: Mapping[str, Tensor], rows: list[int], config: Any, theirs: Any
) -> dict[str, Tensor]:
    """Put the trained weights in place; ``rows[i]`` is our index of the trained model's modality i."""
    out = {key: value.clone() for key, value in own.items()}
    for key, value in trained.items():
        if key.startswith("conditioner."):
            continue
        if key == "patch_embed.proj.weight":
            _put_groups(out[key], value, rows, len(config.modalities))  # (D, M C p p)
        elif key.removeprefix("next_") == "time_embed.fuse.0.weight":
            _put_groups(out[key], value, rows, len(config.modalities))  # (D, M D / 2)
        elif key == "role_embed.table":
            out[key].zero_()[rows] = value.to(out[key])  # (M, roles, D)
        elif key.startswith("internal_head.") and config.internal_guidance_depth != theirs.internal_guidance_depth:
            continue  # it reads another block, or there is none
        elif (
            key.removeprefix("next_")
            .removeprefix("internal_")
            .startswith(("head.norms.", "head.linears.", "time_embed.mlps."))
        ):
            group, index, layer = _split_index(key)
            out[f"{group}.{rows[index]}.{layer}"].copy_(value)
        elif not key.startswith("projector.") or (key in out and out[key].shape == value.shape):
            out[key].copy_(value)
    new = [row for row in range(len(config.modalities)) if row not in rows]
    for row in new:
        last_layers = (
            f"head.linears.{row}",
            f"internal_head.linears.{row}",
            f"time_embed.mlps.{row}.2",
            f"next_time_embed.mlps.{row}.2",
        )
        for key in (f"{layer}.{name}" for layer in last_layers for name in ("weight", "bias")):
            if key in out:
                out[key].zero_()
    return out


def _put_groups(own: Tensor, trained: Tensor, rows: list[int], num_modalities: int) -> None:
    """Columns in one group per modality: the trained ones in their places, zeros in the others."""
    groups = own.zero_().unflatten(1, (num_modalities, -1))
    groups[:, rows] = trained.unflatten(1, (len(rows), -1)).to(own)


def _split_index(key: str) -> tuple[str, int, str]:
    """ "head.linears.2.weight" -> ("head.linears", 2, "weight")."""
    a, b, index, layer = key.split(".", 3)
    return f"{a}.{b}", int(index), layer
