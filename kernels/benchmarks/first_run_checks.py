"""The first run's checks: outputs, gradients and tangents against float64 on the device, and repeats bit for bit."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from first_run_rows import OURS, Row, Sizes, short
from mmdit_kernels import attention, attention_packed, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.adaln import reference as adaln
from mmdit_kernels.attention import configs
from mmdit_kernels.attention.reference import attention_reference, attention_torch
from mmdit_kernels.testing import relative_rms
from torch import Tensor
from torch.func import jvp

AT_ONCE = 8  # checks whose kernels are compiled together
WIDE = 4352  # columns whose backward takes a piece at a time
FLOAT32_LIMIT, RATIO_LIMIT, TANGENT_RATIO_LIMIT = 2e-6, 1.2, 1.6


class Check(NamedTuple):
    """One operator on one set of tensors; the three functions take them all, in order."""

    op: str
    shape: str
    dtype: str
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    exact: Callable[..., Any]


def _attention(sizes: Sizes, dtype: torch.dtype, d: int, features: bool, longer: int = 0) -> Check:
    generator = torch.Generator().manual_seed(d)
    b, h, n = 2, min(4, sizes.heads), sizes.lengths[0] - (3 if features else 0) + longer

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(sizes.device, dtype)

    qkv = draw(b, n, 3, h, d, dtype=dtype).permute(2, 0, 3, 1, 4)
    weights = (1 + 0.3 * draw(d), 1 + 0.3 * draw(d)) if features else ()
    angles = 3 * draw(n, d // 2).repeat_interleave(2, -1)
    mask = torch.rand(b, n, generator=generator).to(sizes.device) > 0.4
    mask[0] = False  # nothing to attend to
    mask[1, 0] = True

    def call(op: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        def function(q: Tensor, k: Tensor, v: Tensor, *weights: Tensor) -> Tensor:
            if not features:
                return op(q, k, v, **options)
            rope = tuple(
                table.double() if q.dtype == torch.float64 else table for table in (angles.cos(), angles.sin())
            )
            return op(q, k, v, q_weight=weights[0], k_weight=weights[1], rope=rope, key_mask=mask, **options)

        return function

    names = ("q", "k", "v", *(("q_weight", "k_weight") if features else ()))
    shape = f"B{b} H{h} N{n} d{d}{' norm rope mask' if features else ''}"
    functions = call(attention, backend="triton"), call(attention_torch), call(attention_reference)
    return Check("attention", shape, str(dtype)[6:], names, (*qkv, *weights), *functions)


def _one_pass(sizes: Sizes, dtype: torch.dtype, d: int) -> Check:
    """Attention whose backward is the one in one pass, which ``one_pass_runs`` lets run at these lengths alone."""
    generator = torch.Generator().manual_seed(d)
    q, k, v = (torch.randn(2, 4, n, d, generator=generator).to(sizes.device, dtype) for n in (512, 256, 256))
    functions = functools.partial(attention, backend="triton"), attention_torch, attention_reference
    return Check("attention", f"N512 S256 d{d}, one pass", str(dtype)[6:], ("q", "k", "v"), (q, k, v), *functions)


def _packed(sizes: Sizes, dtype: torch.dtype, d: int) -> Check:
    """Attention of a packed projection, whose gradient is written packed."""
    generator = torch.Generator().manual_seed(d)
    b, h, n = 2, min(4, sizes.heads), sizes.lengths[0]
    qkv = torch.randn(b, n, 3, h, d, generator=generator).to(sizes.device, dtype)

    def views(op: Callable[..., Tensor], qkv: Tensor) -> Tensor:
        return op(*qkv.permute(2, 0, 3, 1, 4))

    functions = (
        functools.partial(attention_packed, backend="triton"),
        *(functools.partial(views, op) for op in (attention_torch, attention_reference)),
    )
    return Check("attention_packed", f"B{b} H{h} N{n} d{d}", str(dtype)[6:], ("qkv",), (qkv,), *functions)


@contextlib.contextmanager
def one_pass_runs() -> Iterator[None]:
    """Let the backward be the one in one pass for 512 queries and 256 keys, as if that had been measured."""
    original = configs.tuned

    def answer(key: str, device: torch.device | None = None) -> list[int] | None:
        chosen = key.startswith("attention_backward/") and "/n512/s256/" in key
        return list(configs.ONE_PASS) if chosen else original(key, device)

    configs.tuned = answer
    try:
        yield
    finally:
        configs.tuned = original


def _adaln(sizes: Sizes, dtypes: tuple[torch.dtype, torch.dtype], gated: bool, width: int = 0) -> Check:
    generator = torch.Generator().manual_seed(0)
    b, t, d = 2, sizes.adaln[1] - 1, width or sizes.width
    stream, half = dtypes
    x = torch.randn(b, t, d, generator=generator).to(sizes.device, stream)
    y = torch.randn(b, t, d, generator=generator).to(sizes.device, half)
    gate, shift, scale = torch.randn(b, 3 * d, generator=generator).to(sizes.device, half).chunk(3, 1)
    name = str(stream)[6:] if stream == half else f"{str(stream)[6:]} stream"
    if gated:
        op, tensors = gated_residual_layernorm_modulate, (x, y, gate, shift, scale)
        functions: tuple[Callable[..., Any], ...] = (
            adaln.gated_residual_layernorm_modulate_torch,
            adaln.gated_residual_layernorm_modulate_reference,
        )
        names: tuple[str, ...] = ("x", "y", "gate", "shift", "scale")
    else:
        op, tensors = layernorm_modulate, (x, shift, scale)  # type: ignore[assignment]
        functions = adaln.layernorm_modulate_torch, adaln.layernorm_modulate_reference
        names = ("x", "shift", "scale")

    def ours(*tensors: Tensor) -> Any:
        return op(*tensors, backend="triton")

    return Check(op.__name__, f"B{b} T{t} D{d}", name, names, tensors, ours, *functions)


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _gradients(check: Check, function: Callable[..., Any], wide: bool) -> dict[str, Tensor]:
    leaves = [(x.double() if wide else x).detach().requires_grad_() for x in check.tensors]
    outs = _tuple(function(*leaves))
    generator = torch.Generator().manual_seed(1)
    d_outs = [torch.randn(out.shape, generator=generator).to(check.tensors[0]).to(out) for out in outs]
    results = {f"output {index}": out.detach() for index, out in enumerate(outs)}
    grads = torch.autograd.grad(outs, leaves, d_outs)
    return results | {f"d {name}": grad for name, grad in zip(check.names, grads, strict=True)}


def _tangents(check: Check, function: Callable[..., Any], wide: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    primals = tuple(x.double() if wide else x for x in check.tensors)
    # Norm weights stand still: where they move, PyTorch does the norm.
    moving = [index for index, name in enumerate(check.names) if not name.endswith("_weight")]
    dots = tuple(torch.randn(primals[i].shape, generator=generator).to(check.tensors[i]).to(primals[i]) for i in moving)

    def chosen(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = dict(enumerate(primals)) | dict(zip(moving, values, strict=True))
        return _tuple(function(*(arguments[index] for index in range(len(primals)))))

    _, slopes = jvp(chosen, tuple(primals[i] for i in moving), dots)
    return {f"tangent {index}": slope for index, slope in enumerate(slopes)}


def rows_of(check: Check) -> Iterator[Row]:
    """Yield a row for each output, gradient and tangent, and one for repeats."""
    identical = True
    for part in (_gradients, _tangents):
        ours, again = (part(check, check.ours, False) for _ in range(2))
        identical &= all(torch.equal(ours[name], again[name]) for name in ours)
        theirs, exact = part(check, check.theirs, False), part(check, check.exact, True)
        for name, value in ours.items():
            row = Row("correctness", check.op, check.shape, check.dtype, name, OURS)
            row.error, row.theirs = relative_rms(value, exact[name]), relative_rms(theirs[name], exact[name])
            # In half precision PyTorch's tangent of attention is computed in float32 and rounded once.
            tangent = check.op.startswith("attention") and name.startswith("tangent")
            single = check.dtype == "float32"
            row.bound = FLOAT32_LIMIT if single else (TANGENT_RATIO_LIMIT if tangent else RATIO_LIMIT) * row.theirs
            row.verdict = "met" if row.error <= max(row.bound, 1e-7) else "MISSED"
            yield row
    row = Row("correctness", check.op, check.shape, check.dtype, "repeat", OURS)
    row.verdict = "met" if identical else "MISSED"
    row.note = "the same bits" if identical else "a repeat gave other bits"
    yield row


def checks_of(sizes: Sizes) -> list[Check]:
    f32, bf16 = torch.float32, torch.bfloat16
    if sizes.device == "cpu":  # a rehearsal: each of the kinds
        d = sizes.head_dims[0]
        return [_attention(sizes, f32, d, True), _packed(sizes, f32, d), _adaln(sizes, (f32, bf16), True)]
    attentions = [_attention(sizes, t, d, full) for d in sizes.head_dims for t in (bf16, f32) for full in (False, True)]
    attentions += [_attention(sizes, bf16, d, True, longer=512) for d in sizes.head_dims]  # norm and rotation ahead
    attentions += [_one_pass(sizes, bf16, d) for d in sizes.head_dims]
    attentions += [_packed(sizes, t, d) for d in sizes.head_dims for t in (bf16, f32)]
    dtypes = ((bf16, bf16), (f32, f32), (f32, bf16))
    norms = [_adaln(sizes, pair, gated) for pair in dtypes for gated in (True, False)]
    return attentions + norms + [_adaln(sizes, pair, True, WIDE) for pair in dtypes[:2]]


def _touch(check: Check) -> None:
    """Let the kernels of a check be compiled; tangents apart, whose levels are not those of one thread."""
    _gradients(check, check.ours, False)


def correctness(sizes: Sizes) -> Iterator[Row]:
    """Yield the rows of every check; a check that raises leaves a row that says why."""
    with one_pass_runs():
        yield from _correctness(sizes)


def _correctness(sizes: Sizes) -> Iterator[Row]:
    checks = checks_of(sizes)
    for first in range(0, len(checks), AT_ONCE):  # so that rows are there before everything is compiled
        few = checks[first : first + AT_ONCE]
        if sizes.device == "cuda":
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for future in [pool.submit(_touch, check) for check in few]:
                    future.exception()  # said below, where the check itself raises
        for check in few:
            yield from _rows_or_why(check, sizes)


def _rows_or_why(check: Check, sizes: Sizes) -> Iterator[Row]:
    try:
        yield from rows_of(check)
    except Exception as error:
        yield Row("correctness", check.op, check.shape, check.dtype, "", OURS, "MISSED", note=short(error))
        if sizes.device == "cuda":
            torch.cuda.synchronize()
