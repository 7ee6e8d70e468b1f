"""The first run's timings of single operators, against every SDPA backend forced one by one, and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import mmdit_kernels
import torch
from first_run_rows import OURS, Row, Sizes, interleave, with_work
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.attention.reference import attention_reference, attention_torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 72
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
Build = Callable[[], Callable[[], object]]


def compiled(function: Callable[..., Any], sizes: Sizes) -> Callable[..., Any]:
    """torch.compile with a new code object, so that the graphs of several ways live side by side."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__code__ = call.__code__.replace(co_name="compiled")
    return torch.compile(call, backend=sizes.compiler)  # type: ignore[no-any-return]


def _forced(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _views(function: Callable[..., Tensor], qkv: Tensor) -> Tensor:
    return function(*qkv.permute(2, 0, 3, 1, 4))


def _no_grad(function: Callable[..., object], *arguments: Any) -> object:
    with torch.no_grad():
        return function(*arguments)


def _pauses(direction: str) -> int:
    """Of the GPU: a gradient's kernels are launched by another thread, which waits for a core where others have them."""
    return 1 if direction == "forward" else 5


def attention_rows(sizes: Sizes, section: str, few: bool = False) -> Iterator[Row]:
    """Forward; and with the backward down to q, k and v, or to the packed projection, as the model has it.

    ``few``: ours and the backends that are rivals, without what takes long to compile.
    """
    functions: dict[str, Callable[..., Tensor]] = {OURS: functools.partial(attention, backend="triton")}
    functions |= {name: functools.partial(_forced, backend) for name, backend in BACKENDS.items()}
    if few:
        functions.pop("sdpa math")
    for n in sizes.lengths:
        if not few:
            functions["compiled reference"] = compiled(attention_reference, sizes)
        b, h, d = max(1, sizes.tokens // n), sizes.heads, HEAD_DIM if sizes.device == "cuda" else sizes.head_dims[-1]
        qkv = torch.randn(b, n, 3, h, d, dtype=torch.bfloat16, device=sizes.device)
        leaf = qkv.detach().requires_grad_()
        leaves = [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4)]
        d_out = torch.randn(b, n, h, d, dtype=qkv.dtype, device=qkv.device).transpose(1, 2)
        packed = {name: functools.partial(_views, function) for name, function in functions.items()}
        if hasattr(mmdit_kernels, "attention_packed"):
            packed[f"{OURS} packed"] = functools.partial(mmdit_kernels.attention_packed, backend="triton")

        def gradient(function: Callable[..., Tensor], inputs: list[Tensor], d_out: Tensor = d_out) -> object:
            return torch.autograd.grad(function(*inputs), inputs, d_out)

        directions: dict[str, tuple[float, dict[str, Callable[[], object]]]] = {
            "forward": (1.0, {key: functools.partial(_no_grad, f, *leaves) for key, f in functions.items()}),
            "forward+backward": (3.5, {key: functools.partial(gradient, f, leaves) for key, f in functions.items()}),
            "forward+backward, packed": (3.5, {k: functools.partial(gradient, f, [leaf]) for k, f in packed.items()}),
        }
        for direction, (factor, calls) in directions.items():
            rows = {key: Row(section, "attention", f"d{d} N{n}", "bfloat16", direction, key) for key in calls}
            ways: dict[str, Build] = {key: (lambda call=call: call) for key, call in calls.items()}  # type: ignore[misc]
            for row in interleave(rows, ways, sizes, pauses=_pauses(direction)):
                yield with_work(row, flops=factor * 4.0 * b * n * n * h * d)


def copy_rows(sizes: Sizes, section: str) -> Iterator[Row]:
    """A large copy in device memory, what the norms' rates are compared with; bytes are read and written."""
    count = 2**29 if sizes.device == "cuda" else 2**10
    source, target = (torch.ones(count, dtype=torch.bfloat16, device=sizes.device) for _ in range(2))
    rows = {"torch": Row(section, "copy", f"{count} numbers", "bfloat16", "forward", "torch")}
    for row in interleave(rows, {"torch": lambda: functools.partial(target.copy_, source)}, sizes):
        yield with_work(row, moved=4.0 * count)


def adaln_rows(sizes: Sizes, section: str, few: bool = False) -> Iterator[Row]:
    """Both norms, in bfloat16 and with a float32 stream that is rounded for the product behind it."""
    (b, t), d = sizes.adaln, sizes.width
    half = torch.bfloat16
    yield from copy_rows(sizes, section)
    for stream in (half, torch.float32) if sizes.device == "cuda" else (torch.float32,):
        x = torch.randn(b, t, d, dtype=stream, device=sizes.device)
        y = torch.randn(b, t, d, dtype=half, device=sizes.device)
        vectors = torch.randn(b, 3 * d, dtype=half, device=sizes.device).chunk(3, dim=1)
        for op, tensors, moved in (
            (gated_residual_layernorm_modulate, (x, y, *vectors), ((2, 2), (3, 3))),
            (layernorm_modulate, (x, *vectors[:2]), ((1, 1), (2, 1))),
        ):
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            # Bytes of what has the stream's dtype, and of what is half, forward and then backward.
            wide = x.element_size()
            sums = [(streams * wide + halves * 2) * b * t * d for streams, halves in moved]
            d_outs = [torch.randn_like(x), torch.randn_like(y)] if op is gated_residual_layernorm_modulate else [y]

            def call(backend: str, *tensors: Tensor, op: Callable[..., Any] = op) -> Any:
                return op(*tensors, backend=backend, out_dtype=half)

            def gradient(function: Callable[..., Any], leaves: Any = leaves, d_outs: Any = d_outs) -> object:
                return torch.autograd.grad(function(*leaves), leaves, d_outs)

            functions = {OURS: functools.partial(call, "triton"), "torch": functools.partial(call, "torch")}
            if not few:
                functions["compiled torch"] = compiled(functions["torch"], sizes)
            for direction, total in (("forward", sums[0]), ("forward+backward", sum(sums))):
                rows, ways = {}, {}
                for name, function in functions.items():
                    dtype = "bfloat16" if stream == half else "float32 stream"
                    rows[name] = Row(section, op.__name__, f"B{b} T{t} D{d}", dtype, direction, name)
                    forward = functools.partial(_no_grad, function, *leaves)
                    run = forward if direction == "forward" else functools.partial(gradient, function)
                    ways[name] = lambda run=run: run  # type: ignore[misc]
                for row in interleave(rows, ways, sizes, pauses=_pauses(direction)):
                    yield with_work(row, moved=total)


def jvp_rows(sizes: Sizes, section: str) -> Iterator[Row]:
    """Output and tangent: ours, PyTorch's (attention: its math backend), and our forward alone."""
    half = torch.bfloat16

    def call(function: Callable[..., Any], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> object:
        with torch.no_grad():
            return jvp(function, primals, tangents)

    # Tangents lie in memory as their primals do, as a model's would: forward mode copies any other.
    works: list[tuple[str, str, list[tuple[Tensor, ...]], Callable[..., Any], Callable[..., Any], float, float]] = []
    for n in sizes.lengths[:2]:
        b, h, d = max(1, sizes.tokens // n), sizes.heads, HEAD_DIM if sizes.device == "cuda" else sizes.head_dims[-1]
        packed = (torch.randn(b, n, 3, h, d, dtype=half, device=sizes.device) for _ in range(2))
        pair = [tuple(both.permute(2, 0, 3, 1, 4)) for both in packed]
        ours = functools.partial(attention, backend="triton")
        works.append(("attention", f"d{d} N{n}", pair, ours, attention_torch, 12.0 * b * n * n * h * d, 0.0))
    (b, t), width = sizes.adaln, sizes.width
    pair = []
    for _ in range(2):
        x, y = (torch.randn(b, t, width, dtype=half, device=sizes.device) for _ in range(2))
        pair.append((x, y, *torch.randn(b, 3 * width, dtype=half, device=sizes.device).chunk(3, dim=1)))
    gated = gated_residual_layernorm_modulate
    ours, theirs = (functools.partial(gated, backend=backend) for backend in ("triton", "torch"))
    works.append((gated.__name__, f"B{b} T{t} D{width}", pair, ours, theirs, 0.0, 16.0 * b * t * width))
    for op, shape, (primals, tangents), ours, theirs, flops, moved in works:
        calls = {
            OURS: functools.partial(call, ours, primals, tangents),
            "sdpa math" if op == "attention" else "torch": functools.partial(call, theirs, primals, tangents),
            f"{OURS} forward alone": functools.partial(_no_grad, ours, *primals),
        }
        rows = {name: Row(section, op, shape, "bfloat16", "output+tangent", name) for name in calls}
        ways: dict[str, Build] = {name: (lambda run=run: run) for name, run in calls.items()}  # type: ignore[misc]
        for row in interleave(rows, ways, sizes, pauses=4):
            alone = row.implementation.endswith("alone")
            yield row if alone else with_work(row, flops=flops, moved=moved)
