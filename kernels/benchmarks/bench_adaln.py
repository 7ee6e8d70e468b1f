"""Adaptive layer norm, plain and after a gated residual: time, GB/s and peak memory, against PyTorch and torch.compile.

The bytes are those that must move: each activation read once and written once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from harness import OURS, Goal, Row, add_work, measure, parser, report, require_gpu
from mmdit_kernels import gated_residual_layernorm_modulate, layernorm_modulate
from torch import Tensor

GOALS = tuple(
    Goal(op, "", "compiled", 1.3, share=0.85) for op in ("layernorm_modulate", "gated_residual_layernorm_modulate")
)
SHAPES = ((128, 256, 1152), (32, 1024, 1152), (128, 256, 768), (64, 256, 4096))


def tensors(b: int, t: int, d: int, gated: bool) -> list[Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    vectors = draw(b, 3 * d).chunk(3, dim=1)
    return [draw(b, t, d), draw(b, t, d), *vectors] if gated else [draw(b, t, d), *vectors[:2]]


def runner(function: Callable[..., object], inputs: list[Tensor], backward: bool) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_(backward) for x in inputs]
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return function(*leaves)

        return forward
    d_outs = [torch.randn_like(inputs[0]) for _ in range(2 if len(inputs) == 5 else 1)]
    return lambda: torch.autograd.grad(function(*leaves), leaves, d_outs)  # type: ignore[arg-type]


def run(options: argparse.Namespace) -> Iterator[Row]:
    # Activations moved: forward, then backward.
    for op, moved in ((layernorm_modulate, (2, 3)), (gated_residual_layernorm_modulate, (4, 6))):
        gated = op is gated_residual_layernorm_modulate
        for b, t, d in SHAPES[:1] if options.quick else SHAPES:
            inputs = tensors(b, t, d, gated)
            for direction, count in (("forward", moved[0]), ("forward+backward", sum(moved))):
                for name, backend, compiled in (
                    (OURS, "triton", False),
                    ("torch", "torch", False),
                    ("compiled torch", "torch", True),
                ):
                    torch._dynamo.reset()

                    def call(*arguments: Tensor, op: Callable[..., object] = op, backend: str = backend) -> object:
                        return op(*arguments, backend=backend)

                    function = torch.compile(call) if compiled else call
                    row = Row(op.__name__, f"B{b} T{t} D{d}", "bfloat16", direction, name)
                    measure(row, lambda: runner(function, inputs, direction != "forward"), options.repeats)  # noqa: B023
                    yield add_work(row, bytes_moved=2.0 * count * b * t * d)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    require_gpu()
    report("adaln", run(options), GOALS, options.output)


if __name__ == "__main__":
    main()
