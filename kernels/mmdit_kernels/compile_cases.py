"""The kernels as they would be launched on targets that are not here: what is compiled ahead of time, and what came out.

Shared by ``tests/kernels/test_compile.py``, ``test_jvp_compile.py`` and ``benchmarks/compile_grid.py``.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from mmdit_kernels.launch import Launch

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPES = ("float32", "float16", "bfloat16")
HEAD_DIMS = (8, 16, 32, 40, 64, 72, 80, 96, 128)
WIDTHS = (48, 384, 768, 1152, 1408, 4096, 8192)
FEATURES = ("plain", "transforms", "mask", "all")
# Versions of triton that the tiles were chosen with (kernels/README.md).
TRIED = ("3.5", "3.6", "3.7", "3.8", "3.9")


class Attention(NamedTuple):
    """One attention kernel: ``features``: "plain", "transforms" (norm, rope), "mask" (and rests of blocks), "all".

    ``kernel``: one of ``KERNELS``; "backward", the one that does it in one pass, for 256 tokens; "rotation" and
    "rotation_backward", which do the transforms ahead of the others; "jvp", output and tangent.
    """

    kernel: str
    target: str
    dtype: str
    d: int
    features: str = "plain"

    def launch(self) -> Launch:
        from mmdit_kernels.attention.configs import ONE_PASS
        from mmdit_kernels.attention.jvp import jvp_launch
        from mmdit_kernels.attention.launches import Inputs, backward_launches, forward_launch, one_pass_launch
        from mmdit_kernels.attention.rotation import rotation_backward_launch, rotation_launch

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        b, h, n = 2, 16, 1000 if self.features in ("mask", "all") else 1024
        n = 256 if self.kernel == "backward" else n
        qkv = empty(b, n, 3, h, self.d, dtype=getattr(torch, self.dtype)).permute(2, 0, 3, 1, 4)
        transforms = self.features in ("transforms", "all")
        weight, table = (empty(self.d), empty(n, self.d)) if transforms else (None, None)
        mask = empty(b, n, dtype=torch.bool) if self.features in ("mask", "all") else None
        q, k, v = qkv
        inputs = Inputs(q, k, v, weight, weight, table, table, mask, self.d**-0.5)
        if self.kernel == "rotation":
            return rotation_launch(q, weight, table, table)[0]
        if self.kernel == "rotation_backward":
            return rotation_backward_launch(torch.empty_like(q), q, weight, table, table, torch.empty_like(q))[0]
        if self.kernel == "jvp":
            q_dot, k_dot, v_dot = torch.empty_like(qkv)
            return jvp_launch(inputs, q_dot, k_dot, v_dot, self.target)[0]
        forward, out, stats = forward_launch(inputs, self.target)
        if self.kernel == "backward":
            found = one_pass_launch(inputs, torch.empty_like(out), out, stats, self.target, config=ONE_PASS)
            assert found is not None
            return found[0]
        queries, keys, _ = backward_launches(inputs, torch.empty_like(out), out, stats, self.target)
        return {"forward": forward, "backward_q": queries, "backward_kv": keys}[self.kernel]


class AdaLN(NamedTuple):
    """One adaptive layer norm kernel: "forward", "backward" or "jvp"."""

    kernel: str
    target: str
    dtype: str
    d: int
    gated: bool = True

    def launch(self) -> Launch:
        from mmdit_kernels.adaln.jvp import jvp_launch
        from mmdit_kernels.adaln.launches import backward_launch, forward_launch

        dtype = getattr(torch, self.dtype)
        x, y = (torch.empty(8, 256, self.d, dtype=dtype, device="meta") for _ in range(2))
        gate, shift, scale = torch.empty(8, 3 * self.d, dtype=dtype, device="meta").chunk(3, 1)
        if self.kernel == "jvp":
            tensors = (x, y, gate, shift, scale) if self.gated else (x, shift, scale)
            return jvp_launch(tensors, tensors, 1e-6, dtype, dtype, self.target)[0]
        y_or_none, gate_or_none = (y, gate) if self.gated else (None, None)
        forward, _, _, stats = forward_launch(x, y_or_none, gate_or_none, shift, scale, 1e-6, dtype, dtype, self.target)
        if self.kernel == "forward":
            return forward
        return backward_launch(x, x, y_or_none, y_or_none, gate_or_none, scale, stats, dtype, self.target)[0]


Case = Attention | AdaLN
KERNELS = ("forward", "backward_q", "backward_kv")
ROTATIONS = ("rotation", "rotation_backward")
GRID: list[Case] = [
    *itertools.starmap(Attention, itertools.product(KERNELS, TARGETS, DTYPES, HEAD_DIMS, FEATURES)),
    *itertools.starmap(AdaLN, itertools.product(("forward", "backward"), TARGETS, DTYPES, WIDTHS, (False, True))),
]
JVP_GRID: list[Case] = [
    *itertools.starmap(Attention, itertools.product(("jvp",), TARGETS, DTYPES, HEAD_DIMS, FEATURES)),
    *itertools.starmap(AdaLN, itertools.product(("jvp",), TARGETS, DTYPES, WIDTHS, (False, True))),
]
# The kernels of an XL/2 model on the four targets, and of its neighbours on the first.
XL2: list[Case] = [
    *itertools.starmap(Attention, itertools.product(KERNELS, ("sm_90",), ("bfloat16",), (64, 72, 128), FEATURES[:2])),
    *itertools.starmap(Attention, itertools.product(("backward",), ("sm_90",), ("bfloat16",), (64, 72))),
    *itertools.starmap(Attention, itertools.product(ROTATIONS, TARGETS, ("bfloat16",), (72,), ("transforms",))),
    *itertools.starmap(Attention, itertools.product(KERNELS, ("sm_80", "sm_100", "gfx942"), ("bfloat16",), (72,))),
    *itertools.starmap(AdaLN, itertools.product(("forward", "backward"), TARGETS, ("bfloat16", "float32"), (1152,))),
    *itertools.starmap(Attention, itertools.product(("jvp",), ("sm_90",), ("bfloat16",), (64, 72, 128), FEATURES[:2])),
    *itertools.starmap(Attention, itertools.product(("jvp",), ("sm_80", "sm_100", "gfx942"), ("bfloat16",), (72,))),
    *itertools.starmap(AdaLN, itertools.product(("jvp",), TARGETS, ("bfloat16", "float32"), (1152,))),
]
# Tensors of q's size (of x's) that each kernel reads or writes at least once, and matrix products of the method.
WORK = {
    ("attention", "forward"): (4, 2),
    ("attention", "backward_q"): (6, 3),
    ("attention", "backward_kv"): (6, 4),
    ("attention", "backward"): (10, 5),  # two of them are sums of dQ in float32
    ("attention", "rotation"): (2, ""),
    ("attention", "rotation_backward"): (3, ""),
    ("attention", "jvp"): (8, 6),
    ("adaln", "forward"): (4, ""),
    ("adaln", "backward"): (6, ""),
    ("adaln", "jvp"): (8, ""),
}


def name(case: Case) -> str:
    """Return "attention-forward-sm_90-bfloat16-72-plain", …."""
    return f"{type(case).__name__.lower()}-" + "-".join(str(field) for field in case)
