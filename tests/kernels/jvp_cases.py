"""Outputs and tangents of the kernels against float64, for the interpreter and for a GPU.

In half precision PyTorch's own error is that of its products and softmax in that dtype, and for the output of attention
that of its fused operator, whichever is less. (Its math backend, which computes in float32 and rounds once, is 1.4 times
more exact than either, and than the kernel, which rounds the weights for the tensor cores; that is held as well.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention_cases import F32, FLOAT32_LIMIT, RATIO_LIMIT, Case, qkv_of
from mmdit_kernels import attention
from mmdit_kernels.attention.reference import attention_reference, attention_torch
from mmdit_kernels.testing import relative_rms
from torch import Tensor
from torch.func import jvp

ROUNDED_ONCE_LIMIT = 1.6


def low_precision(function: Callable[[], Any]) -> Any:
    """Call it with PyTorch's math backend kept in half precision."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        return function()
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


def check_jvp(case: Case, missing: str = "", vectors: bool = False, device: str = "cpu", shift: float = 0.0) -> None:
    """Assert that output and tangent of attention are as exact as they must be.

    ``missing``: which of "qkv" have no tangent; ``vectors``: norm weights and rope tables have one, too; ``shift``: a
    common part of every tangent, which the softmax does not see.
    """
    generator = torch.Generator().manual_seed(hash(case[1:6]) % 1000)

    def draw(x: Tensor) -> Tensor:
        return (torch.randn(x.shape, generator=generator) + shift).to(device, x.dtype)

    moving = dict(zip("qkv", (x.to(device) for x in qkv_of(case, generator)), strict=True))
    fixed: dict[str, Tensor] = {name: moving.pop(name) for name in missing}
    more: dict[str, Tensor] = {}
    if case.norm:
        more |= {f"{name}_weight": 1 + 0.3 * torch.randn(case.d, generator=generator) for name in "qk"}
    if case.rope:
        angles = 3 * torch.randn((case.b, case.n, case.d // 2)[3 - case.rope :], generator=generator)
        more |= {name: f(angles).repeat_interleave(2, -1) for name, f in (("cos", torch.cos), ("sin", torch.sin))}
    more = {name: x.to(device) for name, x in more.items()}
    (moving if vectors else fixed).update(more)
    mask = None
    if case.mask:
        mask = torch.rand(case.b, case.s, generator=generator) > 0.4
        mask[-1, 0] = True
        mask[: case.b - 1] = False  # fully masked
        mask = mask.to(device)
    tangents = {name: draw(x) for name, x in moving.items()}

    def run(op: Callable[..., Tensor], dtype: torch.dtype | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        def cast(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.to(dtype or x.dtype) for name, x in tensors.items()}

        def function(moving: dict[str, Tensor]) -> Tensor:
            x = moving | cast(fixed)
            rope = (x["cos"], x["sin"]) if "cos" in x else None
            weights = {"q_weight": x.get("q_weight"), "k_weight": x.get("k_weight")}
            return op(x["q"], x["k"], x["v"], **weights, rope=rope, key_mask=mask, **options)

        return jvp(function, (cast(moving),), (cast(tangents),))  # type: ignore[no-any-return]

    ours, exact = run(attention, backend="triton"), run(attention_reference, torch.float64)
    baselines = [low_precision(lambda: run(attention_torch))]
    rounded_once = run(attention_torch)
    x = {name: x.contiguous() for name, x in (moving | fixed).items()}
    rope = (x["cos"], x["sin"]) if "cos" in x else None
    fused = attention_torch(x["q"], x["k"], x["v"], x.get("q_weight"), x.get("k_weight"), rope, mask)
    baselines.append((fused, baselines[0][1]))
    for index, name in enumerate(("output", "tangent")):
        error = relative_rms(ours[index], exact[index])
        theirs = min(relative_rms(pair[index], exact[index]) for pair in baselines)
        bound = FLOAT32_LIMIT if case.dtype == F32 else RATIO_LIMIT * theirs
        if exact[index].abs().max() < 1e-9:  # one key: the softmax is constant
            bound = 1e-6 if case.dtype == F32 else 2e-2
        assert error <= max(bound, 1e-7), f"{name}: {error:.2e}, PyTorch {theirs:.2e}, of {case}"
        if case.dtype != F32:
            once = relative_rms(rounded_once[index], exact[index])
            assert error <= max(ROUNDED_ONCE_LIMIT * once, bound), (
                f"{name}: {error:.2e}, rounded once {once:.2e}, {case}"
            )
        if mask is not None:
            assert (ours[index][: case.b - 1] == 0).all()


def check_adaln_jvp(
    ops: tuple[Callable[..., Any], ...], tensors: list[Tensor], missing: tuple[int, ...] = (), device: str = "cpu"
) -> None:
    """Assert the same of an adaptive layer norm; ``ops``: ours, PyTorch's, the reference."""
    generator = torch.Generator().manual_seed(1)
    tensors = [x.to(device) for x in tensors]
    moving = [index for index in range(len(tensors)) if index not in missing]
    tangents = [torch.randn(tensors[i].shape, generator=generator).to(device, tensors[i].dtype) for i in moving]
    results = []
    for op, wide, options in zip(ops, (False, False, True), ({"backend": "triton"}, {}, {}), strict=True):
        inputs = [x.double() if wide else x for x in tensors]
        dots = tuple(x.double() if wide else x for x in tangents)

        def function(*chosen: Tensor, op=op, inputs=inputs, options=options) -> Any:  # type: ignore[no-untyped-def]
            arguments = dict(enumerate(inputs)) | dict(zip(moving, chosen, strict=True))
            outs = op(*(arguments[index] for index in range(len(inputs))), **options)
            return outs if isinstance(outs, tuple) else (outs,)

        outs, dots = jvp(function, tuple(inputs[i] for i in moving), dots)
        results.append((*outs, *dots))
    for index, (ours, theirs, exact) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == theirs.dtype
        error, baseline = relative_rms(ours, exact), relative_rms(theirs, exact)
        single = all(x.dtype == F32 for x in tensors)
        bound = FLOAT32_LIMIT if single else RATIO_LIMIT * baseline
        assert error <= max(bound, 1e-7), f"result {index}: {error:.2e}, PyTorch {baseline:.2e}"
