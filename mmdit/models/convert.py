"""State dicts of MMGen, REPA and SiT -> ours, exactly: same function of the same inputs, up to rounding.

D width, M modalities, C latent channels, p patch size, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.models.checkpoint_formats import FORMATS, CheckpointFormat, NetworkShape, expected_shapes
from mmdit.models.config import SIZES
from mmdit.models.embeddings import SinCosPosition
from mmdit.task import Role

# MMGen's order; a checkpoint with fewer modalities has the first ones.
MMGEN_MODALITIES = ("rgb", "depth", "normal", "segmentation")
# From REPA's and MMGen's training commands; used for files that don't say.
DEFAULT_ALIGNMENT_DEPTH = 8
# float64 sine and cosine rounded to float32, by two libraries; more where the checkpoint has half precision
POSITION_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ConvertedModel:
    """Arguments of ``MultimodalDiT`` and its state dict; most tensors share the memory of the given ones."""

    config: dict[str, Any]
    state_dict: dict[str, Tensor]


def convert_state_dict(
    format: str, state: Mapping[str, Tensor], args: Mapping[str, Any] | None = None, num_heads: int | None = None
) -> ConvertedModel:
    """Convert the official network's state dict; every key is used.

    Args:
        format: name in ``FORMATS``.
        state: names and tensors of the official ``SiT`` module.
        args: the training arguments saved beside them, where they were.
        num_heads: attention heads; None = those of the S, B, L or XL width.

    Raises:
        UserError: another format, missing or unknown keys, wrong shapes, or a model that ours can't represent.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    args = dict(args or {})
    _check_arguments(args)
    state = _without_wrappers(state)
    _check_format(format, state)
    official = FORMATS[format]
    state, first_part = official.joined(state)
    args |= {"encoder_depth": first_part} if first_part else {}
    heads = official.heads(state)
    shape = _read_shape(official, state, heads)
    _check_keys(format, state, expected_shapes(official, shape, heads))
    side = isqrt(shape.num_tokens)
    _check_positions(state["pos_embed"], side)
    if int(args.get("num_classes") or shape.num_labels - 1) != shape.num_labels - 1:
        raise UserError(
            f"y_embedder has {shape.num_labels} rows for {args['num_classes']} classes: "
            "a model trained without a null class can't be converted"
        )
    config: dict[str, Any] = {
        "modalities": list(MMGEN_MODALITIES[: shape.num_modalities]),
        "sample_size": side * shape.patch_size,
        "in_channels": shape.in_channels,
        "patch_size": shape.patch_size,
        "hidden_size": shape.hidden_size,
        "depth": shape.depth,
        "num_heads": num_heads or _heads_of_width(shape.hidden_size),
        "mlp_ratio": shape.mlp_size / shape.hidden_size,
        "num_classes": shape.num_labels - 1,
        "class_dropout_prob": float(args.get("cfg_prob", 0.1)),
        "time_embedding": official.time_embedding,
    }
    if config["hidden_size"] % config["num_heads"]:
        raise UserError(f"hidden size {config['hidden_size']} is not a multiple of num_heads {config['num_heads']}")
    if shape.projector is not None:
        config["alignment_depth"] = int(args.get("encoder_depth") or DEFAULT_ALIGNMENT_DEPTH)
        config["alignment_hidden_size"], config["alignment_dim"] = shape.projector
        if config["alignment_depth"] > shape.depth:
            raise UserError(f"encoder_depth is {config['alignment_depth']}, the model has {shape.depth} blocks")
    return ConvertedModel(config, _convert(official, state, shape, heads))


def _check_arguments(args: Mapping[str, Any]) -> None:
    """Refuse what was trained on another path or target: its weights would fit, and its samples be wrong."""
    path, prediction = str(args.get("path_type", "linear")), str(args.get("prediction", "v"))
    if path.lower() != "linear":
        raise UserError(f"the checkpoint was trained on the path {path!r}: only the linear path is supported")
    if prediction not in ("v", "velocity"):
        raise UserError(f"the checkpoint predicts {prediction!r}: only velocity is supported")


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") put before names."""
    plain = {key.replace("_orig_mod.", "").removeprefix("module."): tensor for key, tensor in state.items()}
    if len(plain) < len(state):
        raise UserError("its names are given with and without the prefixes 'module.' and '_orig_mod.': which count?")
    return plain


def _check_format(format: str, state: Mapping[str, Tensor]) -> None:
    found = (name for name, known in FORMATS.items() if any(key.startswith(known.mark) for key in state))
    actual = next(found, None)
    if actual is None:
        first = ", ".join(sorted(state)[:3])
        raise UserError(f"not a network of MMGen, REPA or SiT: no final layer is among its keys ({first}, …)")
    if actual != format:
        raise UserError(f"this is a checkpoint in format {actual!r} ({FORMATS[actual].title}), not {format!r}")


def _read_shape(format: CheckpointFormat, state: Mapping[str, Tensor], heads: Sequence[str]) -> NetworkShape:
    """Read sizes off the few keys that tell them. Raises UserError where those are missing or misshapen."""

    def size(key: str, ndim: int) -> tuple[int, ...]:
        if key not in state:
            raise UserError(f"missing key {key}")
        if state[key].ndim != ndim:
            raise UserError(f"wrong shape: {key} is {tuple(state[key].shape)}, expected {ndim} dimensions")
        return tuple(state[key].shape)

    hidden_size, channels, patch_size, _ = size("x_embedder.proj.weight", 4)
    in_channels = head_channels = channels // len(heads)
    if format.may_have_variance and size(f"{heads[0]}.linear.weight", 2)[0] == patch_size**2 * 2 * in_channels:
        head_channels = 2 * in_channels
    projector = None
    if format.has_projector:
        projector = (size("projectors.0.0.weight", 2)[0], size("projectors.0.4.weight", 2)[0])
    return NetworkShape(
        hidden_size,
        len(heads),
        in_channels,
        head_channels,
        patch_size,
        num_tokens=size("pos_embed", 3)[1],
        depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        mlp_size=size("blocks.0.mlp.fc1.weight", 2)[0],
        num_labels=size("y_embedder.embedding_table.weight", 2)[0],
        projector=projector,
    )


def _check_keys(format: str, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    parts = [
        f"{name}: {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        for name, found in (("missing keys", missing), ("unknown keys", unknown), ("wrong shapes", wrong))
        if found
    ]
    if parts:
        raise UserError(f"not a network of format {format!r} that can be converted; {'; '.join(parts)}")


def _check_positions(table: Tensor, side: int) -> None:
    if side**2 != table.shape[1]:
        raise UserError(f"pos_embed has {table.shape[1]} tokens: only square images are supported")
    own, _ = SinCosPosition(table.shape[2], 1, side)(torch.zeros(table.shape), (side, side))
    tolerance = max(POSITION_TOLERANCE, torch.finfo(table.dtype).eps)
    if not torch.allclose(table.float(), own, rtol=0, atol=tolerance):
        raise UserError(f"pos_embed is not the sine-cosine table of a {side} x {side} grid: it can't be converted")


def _heads_of_width(hidden_size: int) -> int:
    known = {size["hidden_size"]: size["num_heads"] for size in (SIZES[name] for name in ("S", "B", "L", "XL"))}
    if hidden_size not in known:
        raise UserError(
            f"a width of {hidden_size} is not S, B, L or XL ({', '.join(map(str, known))}): give num_heads, "
            "which no checkpoint of this kind says"
        )
    return known[hidden_size]


def _convert(
    format: CheckpointFormat, state: Mapping[str, Tensor], s: NetworkShape, heads: Sequence[str]
) -> dict[str, Tensor]:
    renamed = {
        "x_embedder.": "patch_embed.",
        "y_embedder.": "conditioner.",
        "t_embedder.mlp_fused.": "time_embed.fuse.",
        "t_embedder.mlp.": format.time_mlp,
        "projectors.0.": "projector.layers.",
        "blocks.": "blocks.",
    }
    for i, head in enumerate(heads):
        renamed |= {
            f"{head}.adaLN_modulation.": f"head.norms.{i}.modulation.",
            f"{head}.linear.": f"head.linears.{i}.",
        }
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, ours in renamed.items():
            if key.startswith(theirs):
                name = ours + key[len(theirs) :].replace("adaLN_modulation.", "modulation.")
                out[name] = tensor.float() if tensor.dtype == torch.float64 else tensor
                break
    out["patch_embed.proj.weight"] = out["patch_embed.proj.weight"].flatten(1)  # (D, M C p p)
    base = torch.zeros_like(out["patch_embed.proj.bias"])
    table = base.new_zeros(s.num_modalities, len(Role), len(base))
    out["role_embed.base"], out["role_embed.table"] = format.roles(state, base, table)
    if s.head_channels != s.in_channels:  # the variance's channels are the second half, and never sampled from
        for key in ("head.linears.0.weight", "head.linears.0.bias"):
            out[key] = out[key].unflatten(0, (-1, s.head_channels))[:, : s.in_channels].flatten(0, 1).contiguous()
    format.in_our_time(out)
    return out
