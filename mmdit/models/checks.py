"""What a transformer's config may say: checked before a network is built."""

from __future__ import annotations

from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.models.alignment import PROJECTORS
from mmdit.models.blocks import BLOCKS
from mmdit.models.conditioners import CONDITIONERS
from mmdit.models.embeddings import POSITION_EMBEDDINGS, TIMESTEP_EMBEDDINGS
from mmdit.models.layers import QK_NORMS
from mmdit.names import PREDICTION_TYPES


def check_config(config: Any) -> None:
    """Raise UserError for an unknown name, sizes that don't divide, or a block outside the depth."""
    tables: dict[str, Any] = {
        "qk_norm": QK_NORMS,
        "position_embedding": POSITION_EMBEDDINGS,
        "time_embedding": TIMESTEP_EMBEDDINGS,
        "prediction": PREDICTION_TYPES,
        "block": BLOCKS,
        "conditioner": CONDITIONERS,
        "alignment_projector": PROJECTORS,
    }
    for key, table in tables.items():
        value = getattr(config, key)
        if value not in table:
            raise unknown_name(key, value, [str(name) for name in table])
    if not config.modalities or len(set(config.modalities)) != len(config.modalities):
        raise UserError(f"modalities are {list(config.modalities)}: give one or more different names")
    if config.hidden_size % config.num_heads:
        fitting = next(n for n in range(config.num_heads, 0, -1) if config.hidden_size % n == 0)
        raise UserError(
            f"hidden_size {config.hidden_size} is not a multiple of num_heads {config.num_heads}: give num_heads {fitting}, "
            "or a hidden_size that is"
        )
    if config.sample_size % config.patch_size:
        raise UserError(f"sample_size {config.sample_size} is not a multiple of patch_size {config.patch_size}")
    if config.sample_shape is not None:
        _check_shape(config.sample_shape, config.sample_size, config.patch_size)
    if config.alignment_depth is not None and not 1 <= config.alignment_depth <= config.depth:
        raise UserError(f"alignment_depth is {config.alignment_depth}: give 1 to depth = {config.depth}, or null")
    middle = config.internal_guidance_depth
    if middle is not None and not 1 <= middle < config.depth:
        raise UserError(f"internal_guidance_depth is {middle}: give 1 to less than depth = {config.depth}, or null")


def _check_shape(shape: Any, size: int, patch_size: int) -> None:
    is_pair = isinstance(shape, list | tuple) and len(shape) == 2 and all(type(side) is int for side in shape)
    if not is_pair or min(shape) < 1 or max(shape) != size:
        raise UserError(
            f"sample_shape is {shape}: give (height, width), the longer side as sample_size, {size}; or null"
        )
    if any(side % patch_size for side in shape):
        raise UserError(f"sample_shape {list(shape)}: both must be multiples of patch_size {patch_size}")
