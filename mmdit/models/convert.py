"""State dicts of MMGen, REPA and SiT -> ours, exactly: same function of the same inputs, up to rounding.

Time runs the same way in MMGen and REPA as here, t = 0 data and t = 1 noise. SiT's runs the other way and is folded into
the weights. Its velocity, data - noise, changes sign with the head. Its timestep is s = 1 - t, and by the angle-addition
formulas the sinusoids of 1 - t are a linear map of those of t,

    cos((1 - t) w) = cos w cos(t w) + sin w sin(t w),    sin((1 - t) w) = sin w cos(t w) - cos w sin(t w),

which the first linear layer of the timestep MLP absorbs. So a converted model is like any other, with no flag.

D width, M modalities, C latent channels, p patch size, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.models.config import SIZES
from mmdit.models.embeddings import SinCosPosition, SummedTimestepEmbedding, sinusoid_frequencies
from mmdit.task import Role

# MMGen's order; a checkpoint with fewer modalities has the first ones.
MMGEN_MODALITIES = ("rgb", "depth", "normal", "segmentation")
FORMATS: dict[str, str] = {
    "mmgen": "MMGen, several modalities (arXiv 2503.20644)",
    "repa": "REPA, RGB alone (arXiv 2410.06940)",
    "sit": "SiT, RGB alone (arXiv 2401.08740)",
}
# From REPA's and MMGen's training commands; used for files that don't say.
DEFAULT_ALIGNMENT_DEPTH = 8
# float64 sine and cosine rounded to float32, by two libraries; more where the checkpoint has half precision
POSITION_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ConvertedModel:
    """Arguments of ``MultimodalDiT`` and its state dict; most tensors share the memory of the given ones."""

    config: dict[str, Any]
    state_dict: dict[str, Tensor]


@dataclass(frozen=True)
class _Shape:
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
    if format == "repa":
        state, first_part = _join_parts(state)
        args |= {"encoder_depth": first_part} if first_part else {}
    shape = _read_shape(format, state)
    _check_keys(format, state, _expected_shapes(format, shape))
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
        "time_embedding": "fused" if format == "mmgen" else "sum",
    }
    if config["hidden_size"] % config["num_heads"]:
        raise UserError(f"hidden size {config['hidden_size']} is not a multiple of num_heads {config['num_heads']}")
    if shape.projector is not None:
        config["alignment_depth"] = int(args.get("encoder_depth") or DEFAULT_ALIGNMENT_DEPTH)
        config["alignment_hidden_size"], config["alignment_dim"] = shape.projector
        if config["alignment_depth"] > shape.depth:
            raise UserError(f"encoder_depth is {config['alignment_depth']}, the model has {shape.depth} blocks")
    return ConvertedModel(config, _convert(format, state, shape))


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


def _join_parts(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
    """Number the blocks of REPA's first release through: those after the alignment were ``decoder_blocks``, from 0.

    Returns the state and the number of blocks before the alignment, 0 where the blocks are in one part already.
    """
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


def _check_format(format: str, state: Mapping[str, Tensor]) -> None:
    if any(key.startswith("lis_final_layer.") for key in state):
        actual = "mmgen"
    elif any(key.startswith("projectors.") for key in state):
        actual = "repa"
    elif "final_layer.linear.weight" in state:
        actual = "sit"
    else:
        first = ", ".join(sorted(state)[:3])
        raise UserError(f"not a network of MMGen, REPA or SiT: no final layer is among its keys ({first}, …)")
    if actual != format:
        raise UserError(f"this is a checkpoint in format {actual!r} ({FORMATS[actual]}), not {format!r}")


def _read_shape(format: str, state: Mapping[str, Tensor]) -> _Shape:
    """Read sizes off the few keys that tell them. Raises UserError where those are missing or misshapen."""

    def size(key: str, ndim: int) -> tuple[int, ...]:
        if key not in state:
            raise UserError(f"missing key {key}")
        if state[key].ndim != ndim:
            raise UserError(f"wrong shape: {key} is {tuple(state[key].shape)}, expected {ndim} dimensions")
        return tuple(state[key].shape)

    head = "lis_final_layer.0" if format == "mmgen" else "final_layer"
    hidden_size, channels, patch_size, _ = size("x_embedder.proj.weight", 4)
    heads = {key.split(".")[1] for key in state if key.startswith("lis_final_layer.")}
    num_modalities = len(heads) if format == "mmgen" else 1
    in_channels = channels // num_modalities
    head_channels = in_channels
    if format != "mmgen" and size(f"{head}.linear.weight", 2)[0] == patch_size**2 * 2 * in_channels:
        head_channels = 2 * in_channels
    projector = None
    if format != "sit":
        projector = (size("projectors.0.0.weight", 2)[0], size("projectors.0.4.weight", 2)[0])
    return _Shape(
        hidden_size,
        num_modalities,
        in_channels,
        head_channels,
        patch_size,
        num_tokens=size("pos_embed", 3)[1],
        depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        mlp_size=size("blocks.0.mlp.fc1.weight", 2)[0],
        num_labels=size("y_embedder.embedding_table.weight", 2)[0],
        projector=projector,
    )


def _expected_shapes(format: str, s: _Shape) -> dict[str, tuple[int, ...]]:
    """Every key of the official network and its shape."""
    d, p, m = s.hidden_size, s.patch_size, s.num_modalities
    linears = {"t_embedder.mlp.0": (d, SummedTimestepEmbedding.frequency_dim)}
    if format == "mmgen":
        linears |= {"t_embedder.mlp.2": (d // 2, d)}
        linears |= {"t_embedder.mlp_fused.0": (d, m * (d // 2)), "t_embedder.mlp_fused.2": (d, d)}
    else:
        linears |= {"t_embedder.mlp.2": (d, d)}
    for i in range(s.depth):
        block = f"blocks.{i}."
        linears |= {block + "attn.qkv": (3 * d, d), block + "attn.proj": (d, d)}
        linears |= {block + "mlp.fc1": (s.mlp_size, d), block + "mlp.fc2": (d, s.mlp_size)}
        linears |= {block + "adaLN_modulation.1": (6 * d, d)}
    if s.projector is not None:
        wide, out = s.projector
        linears |= {"projectors.0.0": (wide, d), "projectors.0.2": (wide, wide), "projectors.0.4": (out, wide)}
    for head in [f"lis_final_layer.{i}" for i in range(m)] if format == "mmgen" else ["final_layer"]:
        linears |= {f"{head}.linear": (p * p * s.head_channels, d), f"{head}.adaLN_modulation.1": (2 * d, d)}
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, s.num_tokens, d),
        "x_embedder.proj.weight": (d, m * s.in_channels, p, p),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (s.num_labels, d),
    }
    if format == "mmgen":
        shapes["taskcond_embedder.embedding_table.weight"] = (m + 1, d)
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


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


def _convert(format: str, state: Mapping[str, Tensor], s: _Shape) -> dict[str, Tensor]:
    renamed = {
        "x_embedder.": "patch_embed.",
        "y_embedder.": "conditioner.",
        "t_embedder.mlp_fused.": "time_embed.fuse.",
        "t_embedder.mlp.": "time_embed.mlp." if format == "mmgen" else "time_embed.mlps.0.",
        "projectors.0.": "projector.layers.",
        "blocks.": "blocks.",
    }
    heads = {f"lis_final_layer.{i}." if format == "mmgen" else "final_layer.": i for i in range(s.num_modalities)}
    for prefix, i in heads.items():
        renamed |= {
            f"{prefix}adaLN_modulation.": f"head.norms.{i}.modulation.",
            f"{prefix}linear.": f"head.linears.{i}.",
        }
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, ours in renamed.items():
            if key.startswith(theirs):
                name = ours + key[len(theirs) :].replace("adaLN_modulation.", "modulation.")
                out[name] = tensor.float() if tensor.dtype == torch.float64 else tensor
                break
    out["patch_embed.proj.weight"] = out["patch_embed.proj.weight"].flatten(1)  # (D, M C p p)
    out["role_embed.base"], out["role_embed.table"] = _roles(
        state.get("taskcond_embedder.embedding_table.weight"), out["patch_embed.proj.bias"], s.num_modalities
    )
    if s.head_channels != s.in_channels:  # the variance's channels are the second half, and never sampled from
        for key in ("head.linears.0.weight", "head.linears.0.bias"):
            out[key] = out[key].unflatten(0, (-1, s.head_channels))[:, : s.in_channels].flatten(0, 1).contiguous()
    if format == "sit":
        for key in ("head.linears.0.weight", "head.linears.0.bias"):
            out[key] = -out[key]
        out["time_embed.mlps.0.0.weight"] = _reverse_time(out["time_embed.mlps.0.0.weight"])
    return out


def _roles(tasks: Tensor | None, like: Tensor, num_modalities: int) -> tuple[Tensor, Tensor]:
    """MMGen's task table (M + 1, D), 0 = joint, m + 1 = modality m is the condition -> base (D,), table (M, roles, D)."""
    base = torch.zeros_like(like)
    table = like.new_zeros(num_modalities, len(Role), len(like))
    if tasks is not None:
        base = tasks[0].to(like).clone()
        table[:, Role.CONDITION] = (tasks[1:] - tasks[0]).to(like)
    return base, table


def _reverse_time(weight: Tensor) -> Tensor:
    """First layer over [cos(s w), sin(s w)], s = 1 - t -> the same function of [cos(t w), sin(t w)]; (D, 2F)."""
    w = sinusoid_frequencies(weight.shape[1]).double()
    of_cos, of_sin = weight.double().chunk(2, dim=1)
    reversed_cos = of_cos * w.cos() + of_sin * w.sin()
    reversed_sin = of_cos * w.sin() - of_sin * w.cos()
    return torch.cat([reversed_cos, reversed_sin], dim=1).to(weight.dtype)
