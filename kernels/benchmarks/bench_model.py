"""A whole SiT-XL/2 block and a whole training step of the XL/2 model, with these kernels and with PyTorch's operators.

Each way runs eagerly and under torch.compile; the weights and the batch are the same. The step is forward, velocity
loss, backward, gradient clipping and AdamW, in bfloat16 autocast, the optimizer fused; its model is the first run's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from first_run_model import EVERY, flops_of, model_and_loss
from first_run_rows import GPU
from harness import OURS, Goal, Row, add_work, measure, parser, report, require_gpu
from mmdit_kernels.dispatch import ENVIRONMENT_VARIABLE
from torch.nn.attention import SDPBackend, sdpa_kernel

GOALS = (Goal("training step XL/2", "", "sdpa compiled", 1.1),)
WIDTH, HEADS, TOKENS, DEPTH = GPU.width, GPU.heads, GPU.adaln[1], GPU.depth
# Name, backend of the operators, compiled, SDPA's backends. One by one for the block only: a step takes minutes to compile.
WAYS = (
    (f"{OURS} compiled", "triton", True, EVERY),
    (OURS, "triton", False, EVERY),
    ("sdpa compiled", "torch", True, EVERY),
    ("sdpa", "torch", False, EVERY),
)
BLOCK_WAYS = (
    *WAYS,
    ("sdpa flash compiled", "torch", True, [SDPBackend.FLASH_ATTENTION]),
    ("sdpa cudnn compiled", "torch", True, [SDPBackend.CUDNN_ATTENTION]),
    ("sdpa efficient compiled", "torch", True, [SDPBackend.EFFICIENT_ATTENTION]),
)


@contextmanager
def backend(name: str) -> Iterator[None]:
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = name
    torch._dynamo.reset()  # the backend is a constant of a compiled graph
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT_VARIABLE)
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


def block_call(batch: int, compiled: bool) -> Callable[[], object]:
    from mmdit.models.blocks import BLOCKS

    torch.manual_seed(0)
    block = BLOCKS["dit"](WIDTH, HEADS).to("cuda", torch.bfloat16)
    x = torch.randn(batch, TOKENS, WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    c = torch.randn(batch, WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    d_out = torch.randn_like(x)
    function = torch.compile(block) if compiled else block
    inputs = [x, c, *block.parameters()]
    return lambda: torch.autograd.grad(function(x, c), inputs, d_out)


def step_call(batch: int, compiled: bool) -> Callable[[], object]:
    _, model, loss = model_and_loss(GPU._replace(step_batch=batch))
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def run(options: argparse.Namespace) -> Iterator[Row]:
    cases = (
        ("block XL/2", (64, 256), block_call, 1, BLOCK_WAYS),
        ("training step XL/2", (64,), step_call, DEPTH, WAYS),
    )
    for op, batches, build, layers, ways in cases:
        for batch in batches[:1] if options.quick else batches:
            for name, way, compiled, sdpa in ways:
                row = Row(op, f"B{batch} T{TOKENS} D{WIDTH}", "bfloat16", "forward+backward", name)
                with backend(way), sdpa_kernel(sdpa):
                    measure(row, lambda: build(batch, compiled), options.repeats)  # noqa: B023
                yield add_work(row, flops=3 * layers * flops_of(GPU, batch))


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    require_gpu()
    report("model", run(options), GOALS, options.output)


if __name__ == "__main__":
    main()
