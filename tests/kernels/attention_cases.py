"""Cases of the attention kernels against float64, for the interpreter and for a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdit_kernels import attention
from mmdit_kernels.attention.reference import attention_reference, attention_torch
from mmdit_kernels.testing import relative_rms
from torch import Tensor

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOAT32_LIMIT = 2e-6  # relative RMS error
RATIO_LIMIT = 1.2  # error over the error of PyTorch's operator


class Case(NamedTuple):
    """Sizes and features; ``layout`` says how q, k and v lie in memory."""

    dtype: torch.dtype
    d: int
    n: int
    s: int
    b: int = 1
    h: int = 1
    norm: bool = False
    rope: int = 0  # dimensions of the tables: 2, 3, or 0 for none
    mask: bool = False
    layout: str = "packed"
    magnitude: float = 1.0


def qkv_of(case: Case, generator: torch.Generator) -> list[Tensor]:
    b, h, n, s, d = case.b, case.h, case.n, case.s, case.d

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)

    if case.layout == "packed" and n == s:
        q, k, v = draw(b, n, 3, h, d).permute(2, 0, 3, 1, 4)
    elif case.layout == "columns":  # the head dimension is not the dense one
        q, k, v = (draw(b, h, d, length).transpose(2, 3) for length in (n, s, s))
    elif case.layout == "shared":  # one head of keys and values for all, and rows that start at odd places
        q = draw(b, h, n, d + 3)[..., 3:]
        k, v = (draw(b, 1, s, d + 1)[..., 1:].expand(b, h, s, d) for _ in range(2))
    else:
        q, k, v = (draw(b, length, h, d).transpose(1, 2) for length in (n, s, s))
    return [q * case.magnitude, k, v] if case.magnitude != 1 else [q, k, v]


def check(case: Case, qkv: list[Tensor] | None = None, device: str = "cpu") -> None:
    """Assert that the output and every gradient of the kernels are as exact as they must be."""
    generator = torch.Generator().manual_seed(hash(case[1:6]) % 1000)
    qkv = qkv_of(case, generator) if qkv is None else qkv
    weights = [1 + 0.3 * torch.randn(case.d, generator=generator) if case.norm else None for _ in range(2)]
    rope, mask = None, None
    if case.rope:
        angles = 3 * torch.randn((case.b, case.n, case.d // 2)[3 - case.rope :], generator=generator)
        rope = tuple(table.repeat_interleave(2, -1) for table in (angles.cos(), angles.sin()))
    if case.mask:
        mask = torch.rand(case.b, case.s, generator=generator) > 0.4
        mask[-1, 0] = True
        mask[: case.b - 1] = False  # fully masked
    d_out = torch.randn(case.b, case.h, case.n, case.d, generator=generator).to(device, case.dtype)
    qkv = [x.to(device) for x in qkv]
    weights = [x if x is None else x.to(device) for x in weights]
    rope = None if rope is None else tuple(table.to(device) for table in rope)
    mask = None if mask is None else mask.to(device)

    results = []
    for function, dtype in ((attention, None), (attention_torch, None), (attention_reference, torch.float64)):
        tensors = [x if x is None else x.to(dtype or x.dtype).detach() for x in (*qkv, *weights)]
        if function is attention_torch:  # on dense rows: for other layouts PyTorch leaves its fused operator
            tensors = [x if x is None else x.contiguous() for x in tensors]
        leaves = [x if x is None else x.requires_grad_() for x in tensors]
        q, k, v, q_weight, k_weight = leaves
        tables = None if rope is None else tuple(table.to(dtype or table.dtype) for table in rope)
        options = {"q_weight": q_weight, "k_weight": k_weight, "rope": tables, "key_mask": mask}
        if function is attention:
            options["backend"] = "triton"
        out = function(q, k, v, **options)
        inputs = [leaf for leaf in leaves if leaf is not None]
        results.append((out, *torch.autograd.grad(out, inputs, d_out.to(out.dtype))))
    for name, ours, theirs, exact in zip(("out", "q", "k", "v", "q_weight", "k_weight"), *results, strict=False):
        error, baseline = relative_rms(ours, exact), relative_rms(theirs, exact)
        # A gradient that vanishes (one key: the softmax is constant) has no relative error.
        bound = FLOAT32_LIMIT if case.dtype == F32 else RATIO_LIMIT * baseline
        if exact.abs().max() < 1e-9:
            bound = 1e-6 if case.dtype == F32 else 2e-2
        assert error <= max(bound, 1e-7), f"{name}: {error:.2e}, PyTorch {baseline:.2e}, of {case}"
    if mask is not None:
        assert torch.equal(results[0][0][: case.b - 1], torch.zeros_like(results[0][0][: case.b - 1]))
