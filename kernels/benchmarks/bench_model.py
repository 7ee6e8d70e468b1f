"""A whole SiT-XL/2 block and a whole training step of the XL/2 model, with these kernels and with PyTorch's operators.

Each way runs eagerly and under torch.compile; the weights and the batch are the same. The step is forward, velocity
loss, backward, gradient clipping and AdamW, in bfloat16 autocast, the optimizer fused. Where diffusers is not installed,
which MultimodalDiT needs, the step is that of the same 28 blocks between two linear layers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from harness import Goal, Row, add_work, measure, parser, report, require_gpu
from mmdit_kernels.dispatch import ENVIRONMENT_VARIABLE
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

GOALS = (Goal("training step XL/2", "", "sdpa compiled", 1.1),)
WIDTH, HEADS, TOKENS, DEPTH = 1152, 16, 256, 28
PATCH = 64  # four modalities x four latent channels x 2 x 2
SDPA = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Name, backend of the operators, compiled, SDPA's backends. One by one for the block only: a step takes minutes to compile.
WAYS = (
    ("mmdit_kernels compiled", "triton", True, SDPA),
    ("mmdit_kernels", "triton", False, SDPA),
    ("sdpa compiled", "torch", True, SDPA),
    ("sdpa", "torch", False, SDPA),
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


def block_flops(batch: int) -> float:
    """Return the products of one block, forward: 12 D^2 per token, and attention; the modulation is per sample."""
    return 2.0 * batch * (TOKENS * 12 * WIDTH**2 + 2 * TOKENS**2 * WIDTH + 6 * WIDTH**2)


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


class Backbone(nn.Module):
    """The blocks of the XL/2 model between two linear layers, conditioned on a label; needs torch alone."""

    def __init__(self) -> None:
        from mmdit.models.blocks import BLOCKS
        from mmdit.models.layers import AdaLayerNorm

        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(PATCH, WIDTH), AdaLayerNorm(WIDTH), nn.Linear(WIDTH, PATCH)
        self.labels = nn.Embedding(1000, WIDTH)
        self.blocks = nn.ModuleList(BLOCKS["dit"](WIDTH, HEADS) for _ in range(DEPTH))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        from mmdit.models.blocks import unadded_sums

        x, c = self.embed(x), self.labels(labels)  # (B, T, D), (B, D)
        left = unadded_sums(self.blocks, x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, c, None, None, number not in left)
        return self.head(self.norm(x, c))


def model_call(batch: int, compiled: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a model and a call that gives its velocity loss on one batch."""
    torch.manual_seed(0)
    labels = torch.randint(0, 1000, (batch,), device="cuda")
    if importlib.util.find_spec("diffusers") is None:
        backbone = Backbone().to("cuda")
        tokens, target = (torch.randn(batch, TOKENS, PATCH, device="cuda") for _ in range(2))
        forward = torch.compile(backbone) if compiled else backbone
        return backbone, lambda: (forward(tokens, labels).float() - target).square().mean()
    from mmdit.models.transformer import MultimodalDiT

    model = MultimodalDiT().to("cuda")
    shape = (batch, 4, 4, 32, 32)
    data, noise = (torch.randn(shape, device="cuda") for _ in range(2))
    timesteps = torch.rand(batch, 1, device="cuda").expand(batch, 4).contiguous()
    roles = torch.zeros(batch, 4, dtype=torch.long, device="cuda")
    t = timesteps[:, :, None, None, None]
    x_t = (1 - t) * data + t * noise
    function = torch.compile(model) if compiled else model

    def loss() -> Tensor:
        velocity = function(x_t, timesteps, roles, model.conditioner(labels)).sample
        return (velocity.float() - (noise - data)).square().mean()

    return model, loss


def step_call(batch: int, compiled: bool) -> Callable[[], object]:
    model, loss = model_call(batch, compiled)
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
                yield add_work(row, flops=3 * layers * block_flops(batch))


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    require_gpu()
    report("model", run(options), GOALS, options.output)


if __name__ == "__main__":
    main()
