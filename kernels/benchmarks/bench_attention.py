"""Attention: time, TFLOP/s, memory, against every SDPA backend, FlexAttention and torch.compile of the reference.

H = 16 heads; 32768 tokens in all, so N = 256 is a batch of 128. q, k and v are views of one packed projection, as
in the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from harness import OURS, Goal, Row, add_work, measure, parser, report, require_gpu
from mmdit_kernels import attention
from mmdit_kernels.attention.reference import attention_reference
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, TOKENS = 16, 32768
GOALS = (
    Goal("attention", "d72 ", "sdpa", 1.15),
    Goal("attention", "d64 N256", "sdpa", 1.0),
    Goal("attention", "d64 N1024", "sdpa", 1.0),
    Goal("attention", "d64 N4096", "sdpa", 0.9),
)


def packed(n: int, d: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(TOKENS // n, n, 3, HEADS, d, dtype=dtype, device="cuda")


def sdpa_with(backend: SDPBackend) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v)  # type: ignore[return-value]


def norm_rope(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
    return attention(q, k, v, q_weight=weight, k_weight=weight, rope=(cos, sin), backend=backend)


IMPLEMENTATIONS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    OURS: lambda: lambda q, k, v: attention(q, k, v, backend="triton"),
    "sdpa flash": lambda: sdpa_with(SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": lambda: sdpa_with(SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": lambda: sdpa_with(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa math": lambda: sdpa_with(SDPBackend.MATH),
    "flex": lambda: torch.compile(flex),
    "compiled reference": lambda: torch.compile(attention_reference),
}


def runner(function: Callable[..., Tensor], qkv: Tensor, backward: bool) -> Callable[[], object]:
    """Return one call: forward, or forward and backward down to the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_(backward) for x in qkv.permute(2, 0, 3, 1, 4))
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return function(q, k, v)

        return forward
    d_out = torch.randn(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2)
    return lambda: torch.autograd.grad(function(q, k, v), (q, k, v), d_out)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head_dims", type=int, nargs="+", default=[64, 72, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])


def run(options: argparse.Namespace) -> Iterator[Row]:
    lengths = options.lengths[:1] if options.quick else options.lengths
    for d in options.head_dims:
        for n in lengths:
            qkv = packed(n, d, torch.bfloat16)
            forward_flops = 4.0 * TOKENS * n * HEADS * d
            for name, build in IMPLEMENTATIONS.items():
                torch._dynamo.reset()
                for direction, factor in (("forward", 1.0), ("forward+backward", 3.5)):
                    row = Row("attention", f"d{d} N{n}", "bfloat16", direction, name)
                    measure(row, lambda: runner(build(), qkv, direction != "forward"), options.repeats)  # noqa: B023
                    yield add_work(row, flops=factor * forward_flops)
    for n in lengths:
        qkv = packed(n, 72, torch.bfloat16)
        weight = torch.ones(72, device="cuda")
        angles = torch.randn(n, 36, device="cuda").repeat_interleave(2, -1)
        cos, sin = angles.cos(), angles.sin()
        for name, backend, compiled in ((OURS, "triton", False), ("compiled torch", "torch", True)):
            torch._dynamo.reset()
            function = torch.compile(norm_rope) if compiled else norm_rope
            row = Row("attention norm rope", f"d72 N{n}", "bfloat16", "forward+backward", name)
            call = lambda q, k, v: function(q, k, v, weight, cos, sin, backend)  # noqa: B023, E731
            measure(row, lambda: runner(call, qkv, True), options.repeats)  # noqa: B023
            yield add_work(row, flops=3.5 * 4.0 * TOKENS * n * HEADS * 72)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    add_options(options)
    chosen = options.parse_args(arguments)
    require_gpu()
    report("attention", run(chosen), GOALS, chosen.output)


if __name__ == "__main__":
    main()
