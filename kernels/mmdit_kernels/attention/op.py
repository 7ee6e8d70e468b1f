"""The public attention function: arguments checked, autocast applied, backend chosen."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mmdit_kernels.attention.jvp import attention_of_duals
from mmdit_kernels.attention.packed import attention_packed_forward
from mmdit_kernels.attention.reference import Rope, attention_torch, norm_and_rotate
from mmdit_kernels.attention.registration import attention_forward, find_problem
from mmdit_kernels.dispatch import use_triton
from mmdit_kernels.forward_mode import forward_mode

_PAIRS = (tuple, list)  # torch.compile of PyTorch 2.9 does not know isinstance(x, tuple | list)


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, rope: Rope | None,
    key_mask: Tensor | None,
) -> None:  # fmt: skip
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape:
        raise ValueError(
            "attention needs q (B, H, N, d) and k, v (B, H, S, d); "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    b, h, n, d = q.shape
    if (k.shape[0], k.shape[1], k.shape[3]) != (b, h, d):
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} of attention must agree in B, H and d")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"q, k and v of attention must have one floating dtype; got {q.dtype}, {k.dtype}, {v.dtype}")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and (weight.shape != (d,) or not weight.is_floating_point()):
            raise ValueError(
                f"{name} of attention must be floating with the shape (d,) = ({d},); "
                f"got {weight.dtype} {tuple(weight.shape)}"
            )
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != (b, k.shape[2])):
        raise ValueError(
            f"key_mask of attention must be bool with shape ({b}, {k.shape[2]}), True = attend; "
            f"got {key_mask.dtype} {tuple(key_mask.shape)}"
        )
    if rope is None:
        return
    if not isinstance(rope, _PAIRS) or len(rope) != 2:
        given = f"{len(rope)} tables" if isinstance(rope, _PAIRS) else f"a {type(rope).__name__}"
        raise ValueError(f"rope of attention must be a pair of tables (cos, sin); got {given}")
    if d % 2:
        raise ValueError(f"rope rotates pairs, so the head dimension must be even; got {d}")
    if k.shape[2] != n:
        raise ValueError(f"rope needs as many queries as keys; got {n} queries and {k.shape[2]} keys")
    for name, table in zip(("cos", "sin"), rope, strict=True):
        if table.shape not in ((n, d), (b, n, d)) or not table.is_floating_point():
            raise ValueError(
                f"{name} of rope must be floating with shape ({n}, {d}) or ({b}, {n}, {d}); "
                f"got {table.dtype} {tuple(table.shape)}"
            )


def _autocast(x: Tensor) -> Tensor:
    """Return x in the autocast dtype, where autocast is on."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _differentiates(rope: Rope | None) -> bool:
    """Tell whether a gradient of the rope tables is wanted, which the kernels do not have."""
    return rope is not None and torch.is_grad_enabled() and any(table.requires_grad for table in rope)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: Rope | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention, not causal: softmax(q k^T scale) v (arXiv 1706.03762, equation 1).

    Args:
        q: (B, H, N, d), any strides.
        k: (B, H, S, d), any strides.
        v: (B, H, S, d), any strides.
        q_weight: (d,), RMS-norm of q over d before rope, eps 1e-6 (arXiv 2302.05442); None = no norm.
        k_weight: (d,), the same of k.
        rope: (cos, sin), each (N, d) or (B, N, d): pairs (2i, 2i + 1) of q and k are rotated, and S must be N.
        key_mask: (B, S) bool, True = attend. A row with nothing to attend to gives zeros.
        scale: factor on the logits; None = d ** -0.5.
        backend: "auto", "triton" or "torch".

    Returns:
        (B, H, N, d) in the dtype of q, or in the autocast dtype under autocast.

    Raises:
        ValueError: shapes or dtypes that do not fit together; backend "triton" where it cannot run.
    """
    q, k, v = (_autocast(x) for x in (q, k, v))
    _check(q, k, v, q_weight, k_weight, rope, key_mask)
    arguments = (q, k, v, q_weight, k_weight, rope, key_mask, scale)
    if use_triton("attention", backend, q.device, lambda: find_problem(*arguments)):
        if _differentiates(rope):
            # The kernels have no gradient for the tables: norm and rotation go before them, in PyTorch.
            q, k = norm_and_rotate(q, k, q_weight, k_weight, rope)
            q_weight = k_weight = rope = None
        factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
        dual = attention_of_duals(q, k, v, q_weight, k_weight, rope, key_mask, factor)
        if dual is not None:
            return dual
        cos, sin = (None, None) if rope is None else rope
        return attention_forward(q, k, v, q_weight, k_weight, cos, sin, key_mask, factor)[0]
    return attention_torch(*arguments)


def attention_packed(
    qkv: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: Rope | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Self-attention of a packed projection: ``attention`` of its q, k and v.

    On the Triton backend its gradient is written packed, too; that of three views would be put together by a copy of all.

    Args:
        qkv: (B, N, 3, H, d), any strides: q, k and v of every token.
        q_weight, k_weight, rope, key_mask, scale, backend: as in ``attention``.

    Returns:
        (B, H, N, d), and errors, as ``attention``.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention_packed needs qkv (B, N, 3, H, d); got {tuple(qkv.shape)}")
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    _check(q, k, v, q_weight, k_weight, rope, key_mask)
    problem = functools.partial(find_problem, q, k, v, q_weight, k_weight, rope, key_mask, scale)
    ours = use_triton("attention_packed", backend, qkv.device, problem)
    if not ours or _differentiates(rope) or forward_mode():  # the operator of three views has those rules
        return attention(
            q, k, v, q_weight=q_weight, k_weight=k_weight, rope=rope, key_mask=key_mask, scale=scale, backend=backend
        )
    qkv = _autocast(qkv)
    cos, sin = (None, None) if rope is None else rope
    factor = qkv.shape[-1] ** -0.5 if scale is None else float(scale)
    return attention_packed_forward(qkv, q_weight, k_weight, cos, sin, key_mask, factor)[0]
