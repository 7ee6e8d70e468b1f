"""Launches of the attention kernels: outputs allocated, strides and constants put in order."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmdit_kernels.attention.configs import Config, column_parts, one_pass_takes, select, select_one_pass
from mmdit_kernels.launch import Launch
from mmdit_kernels.tuning import target_of

# Offsets inside a tile and its step to the next are 32-bit: 128 rows and 128 columns at the most.
MAXIMUM_STRIDE = 2**31 // 512


class Inputs(NamedTuple):
    """What every kernel reads; shapes as in ``attention``, cos and sin apart."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    key_mask: Tensor | None
    scale: float


def aligned(*tensors: Tensor) -> bool:
    """Tell whether every row starts on 16 bytes, so that rows are read in 16-byte pieces."""
    return all(
        tensor.stride(3) == 1
        and all(stride % 8 == 0 for stride in tensor.stride()[:3])
        and (tensor.is_meta or tensor.data_ptr() % 16 == 0)
        for tensor in tensors
    )


def empty_like_tokens(x: Tensor, length: int) -> Tensor:
    """Return an empty (B, H, length, d) laid out as (B, length, H, d), so that merging the heads copies nothing."""
    b, h, _, d = x.shape
    return torch.empty_permuted((b, h, length, d), (0, 2, 1, 3), dtype=x.dtype, device=x.device)


class _Call:
    """The part of the arguments that all kernels share."""

    def __init__(self, inputs: Inputs, target: str | None) -> None:
        q, k = inputs.q, inputs.k
        self.batch, self.heads, self.queries, self.head_dim = q.shape
        self.keys = k.shape[2]
        self.dtype = q.dtype
        self.device = q.device
        self.target = target or target_of(q.device)
        self.vectors = [None if x is None else x.contiguous() for x in inputs[3:7]]  # norm weights, cos, sin
        self.key_mask = None if inputs.key_mask is None else inputs.key_mask.contiguous().view(torch.uint8)
        self.qkv_strides = (*q.stride(), *k.stride(), *inputs.v.stride())
        self.scale = inputs.scale

    def pointers(self) -> tuple[Tensor | None, ...]:
        return *self.vectors, self.key_mask

    def sizes(self) -> tuple[int, ...]:
        """Strides of the rope tables and the mask over the batch, the size of a plane of the statistics, and the lengths."""
        tables = [0 if table is None or table.dim() == 2 else table.stride(0) for table in self.vectors[2:]]
        mask = 0 if self.key_mask is None else self.keys
        plane = self.batch * self.heads * self.queries
        return (*tables, mask, plane, self.heads, self.queries, self.keys)

    def _features(self) -> tuple[bool, bool]:
        """Whether norm or rope run in the kernel, and whether there is a key mask."""
        return any(vector is not None for vector in self.vectors), self.key_mask is not None

    def config(self, kernel: str) -> Config:
        sizes = self.head_dim, self.queries, self.keys
        return select(kernel, self.target, self.dtype, *sizes, *self._features(), self.device)

    def one_pass_config(self, config: Config | None) -> Config | None:
        """The tiles of the backward in one pass: the given ones or measured ones; None where they do not fit."""
        lengths = self.queries, self.keys
        if config is None:
            return select_one_pass(self.dtype, self.head_dim, *lengths, *self._features(), self.device)
        return config if one_pass_takes(config, self.dtype, *lengths, *self._features()) else None

    def programs(self, length: int, block: int) -> int:
        return self.batch * self.heads * -(-length // block)

    def constants(self, config: Config, is_aligned: bool) -> dict[str, Any]:
        main, tail = column_parts(self.head_dim, self.dtype)
        q_weight, k_weight, cos, _ = self.vectors
        return {
            "HEAD_DIM": self.head_dim,
            "MAIN": main,
            "TAIL": tail,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "HAS_Q_WEIGHT": q_weight is not None,
            "HAS_K_WEIGHT": k_weight is not None,
            "HAS_ROPE": cos is not None,
            "HAS_MASK": self.key_mask is not None,
            "EVEN_M": self.queries % config.block_m == 0,
            "EVEN_N": self.keys % config.block_n == 0,
            "ALIGNED": is_aligned,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": True,
            **({"maxnreg": config.max_registers} if config.max_registers else {}),
        }


def forward_launch(inputs: Inputs, target: str | None = None) -> tuple[Launch, Tensor, Tensor]:
    """Return the launch, the output (B, H, N, d) and the row statistics (2, B, H, N): maximum, log2 of the sum."""
    from mmdit_kernels.attention.forward import attention_forward_kernel

    call = _Call(inputs, target)
    config = call.config("forward")
    q, k, v = inputs[:3]
    out = empty_like_tokens(q, call.queries)
    stats = torch.empty((2, call.batch, call.heads, call.queries), dtype=torch.float32, device=q.device)
    arguments = (
        *(q, k, v, out, stats, *call.pointers(), *call.qkv_strides, *out.stride()[:3], *call.sizes()),
        call.scale * math.log2(math.e),
    )
    constants = call.constants(config, aligned(q, k, v))
    programs = call.programs(call.queries, config.block_m)
    return Launch(attention_forward_kernel, programs, arguments, constants), out, stats


class Gradients(NamedTuple):
    """Gradients of q, k, v, and of the norm weights per program, as rows to sum (none without a weight)."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor
    k_weight: Tensor


def _near(d_out: Tensor) -> Tensor:
    """Return d_out with strides that the kernels take."""
    return d_out.contiguous() if max(d_out.stride()[2:]) >= MAXIMUM_STRIDE else d_out


def empty_gradients(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty gradients of q, k and v."""
    q, k, v = (empty_like_tokens(x, x.shape[2]) for x in inputs[:3])
    return q, k, v


def backward_launches(
    inputs: Inputs, d_out: Tensor, out: Tensor, stats: Tensor, target: str | None = None,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Launch, Launch, Gradients]:  # fmt: skip
    """Return the two launches, in their order, and the gradients they fill: those of q, k and v are ``into``, or new.

    Each of ``into`` has a dense last dimension, and rows that start on 16 bytes.
    """
    from mmdit_kernels.attention.backward import attention_backward_kv_kernel, attention_backward_q_kernel

    call = _Call(inputs, target)
    q, k, v = inputs[:3]
    d_out = _near(d_out)
    q_config, kv_config = call.config("backward_q"), call.config("backward_kv")
    q_programs = call.programs(call.queries, q_config.block_m)
    kv_programs = call.programs(call.keys, kv_config.block_n)
    q_rows, k_rows = (0 if inputs.q_weight is None else q_programs), (0 if inputs.k_weight is None else kv_programs)
    gradients = Gradients(
        *(into or empty_gradients(inputs)),
        *(torch.empty((rows, call.head_dim), dtype=torch.float32, device=q.device) for rows in (q_rows, k_rows)),
    )
    delta_dtype = torch.float64 if q.dtype == torch.float32 else torch.float32
    delta = torch.empty((call.batch, call.heads, call.queries), dtype=delta_dtype, device=q.device)
    is_aligned = aligned(q, k, v, d_out)
    scales = (call.scale, call.scale * math.log2(math.e))
    q_arguments = (
        *(q, k, v, out, d_out, stats, delta, gradients.q, gradients.q_weight, *call.pointers(), *call.qkv_strides),
        *(*out.stride()[:3], *d_out.stride(), *gradients.q.stride()[:3], *call.sizes(), *scales),
    )
    kv_arguments = (
        *(q, k, v, d_out, stats, delta, gradients.k, gradients.v, gradients.k_weight, *call.pointers()),
        *(*call.qkv_strides, *d_out.stride(), *gradients.k.stride()[:3], *gradients.v.stride()[:3]),
        *(*call.sizes(), *scales),
    )
    return (
        Launch(attention_backward_q_kernel, q_programs, q_arguments, call.constants(q_config, is_aligned)),
        Launch(attention_backward_kv_kernel, kv_programs, kv_arguments, call.constants(kv_config, is_aligned)),
        gradients,
    )


def one_pass_launch(
    inputs: Inputs, d_out: Tensor, out: Tensor, stats: Tensor, target: str | None = None,
    into: tuple[Tensor, Tensor, Tensor] | None = None, config: Config | None = None,
) -> tuple[Launch, Gradients] | None:  # fmt: skip
    """Return the launch of the backward in one pass and the gradients it fills, or None where the two kernels run.

    ``config``: tiles to take whatever was measured.
    """
    from mmdit_kernels.attention.one_pass import attention_backward_kernel

    call = _Call(inputs, target)
    config = call.one_pass_config(config)
    if config is None:
        return None
    q, k, v = inputs[:3]
    d_out = _near(d_out)
    d_q, d_k, d_v = into or empty_gradients(inputs)
    blocks, pairs = call.keys // config.block_n, call.batch * call.heads
    rows = pairs * call.queries if blocks > 1 else 0
    delta, sums = (torch.empty((rows, d), dtype=torch.float32, device=q.device) for d in (1, call.head_dim))
    scale_log2 = call.scale * math.log2(math.e)
    arguments: tuple[Any, ...] = (
        *(
            q,
            k,
            v,
            out,
            d_out,
            stats,
            delta,
            sums,
            d_q,
            d_k,
            d_v,
            *call.qkv_strides,
            *out.stride()[:3],
            *d_out.stride(),
        ),
        *(*d_q.stride()[:3], *d_k.stride()[:3], *d_v.stride()[:3], pairs * call.queries, call.heads, call.queries),
        *(call.scale, scale_log2, 1 / scale_log2),
    )
    main, tail = column_parts(call.head_dim, call.dtype)
    constants = {
        "HEAD_DIM": call.head_dim,
        "MAIN": main,
        "TAIL": tail,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCKS": blocks,
        "ALIGNED": aligned(q, k, v, d_out),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
    nothing = torch.empty((0, call.head_dim), dtype=torch.float32, device=q.device)
    return Launch(attention_backward_kernel, pairs, arguments, constants), Gradients(d_q, d_k, d_v, nothing, nothing)


def plain_backward(
    inputs: Inputs, d_out: Tensor, out: Tensor, stats: Tensor, into: tuple[Tensor, Tensor, Tensor] | None = None
) -> Gradients:
    """Launch the backward, in one kernel or in two, and return the gradients that it fills."""
    found = one_pass_launch(inputs, d_out, out, stats, into=into)
    if found is not None:
        launch, gradients = found
        launch.run(inputs.q)
        return gradients
    q_launch, kv_launch, gradients = backward_launches(inputs, d_out, out, stats, into=into)
    q_launch.run(inputs.q)
    kv_launch.run(inputs.q)
    return gradients
