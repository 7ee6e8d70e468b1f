"""The first run's model: a block and a whole training step of XL/2, compiled block by block.

Compiling 28 layers as one graph does not fit into the time: every block is compiled by itself, and they share one graph.
All ways run the same weights; the step is forward, velocity loss, backward, clipping and fused AdamW, in bfloat16 autocast.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from first_run_rows import OURS, Row, Sizes, interleave, with_work
from mmdit_kernels.dispatch import ENVIRONMENT_VARIABLE
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PATCH = 64  # four modalities x four latent channels x 2 x 2
EVERY = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Name, backend of the operators, compiled, SDPA's backends.
WAYS = (
    (f"{OURS} compiled", "triton", True, EVERY),
    ("sdpa compiled", "torch", True, EVERY),
    (OURS, "triton", False, EVERY),
    ("sdpa", "torch", False, EVERY),
    ("sdpa cudnn compiled", "torch", True, [SDPBackend.CUDNN_ATTENTION]),
    ("sdpa flash compiled", "torch", True, [SDPBackend.FLASH_ATTENTION]),
)


def on_backend(name: str, sdpa: list[SDPBackend], function: Callable[[], object]) -> object:
    """Call a function with the operators' backend set, eagerly and while it is traced."""
    os.environ[ENVIRONMENT_VARIABLE] = name
    try:
        with sdpa_kernel(sdpa):
            return function()
    finally:
        os.environ.pop(ENVIRONMENT_VARIABLE)


def forward_of(block_class: type[nn.Module], compiled: bool, sizes: Sizes) -> Callable[..., Tensor]:
    """Return the blocks' forward; each compiled one has its own code object, and so its own graphs."""

    def call(block: nn.Module, *arguments: Any, **options: Any) -> Tensor:
        return block_class.forward(block, *arguments, **options)

    call.__code__ = call.__code__.replace(co_name="block")
    return torch.compile(call, backend=sizes.compiler) if compiled else call


def set_forward(blocks: list[nn.Module], forward: Callable[..., Tensor]) -> None:
    for block in blocks:
        block.forward = functools.partial(forward, block)  # type: ignore[method-assign]


def flops_of(sizes: Sizes, batch: int) -> float:
    """Return the products of one block, forward: 12 D^2 per token, and attention."""
    tokens, width = sizes.adaln[1], sizes.width
    return 2.0 * batch * (tokens * 12 * width**2 + 2 * tokens**2 * width + 6 * width**2)


def block_rows(sizes: Sizes, section: str) -> Iterator[Row]:
    """Forward and backward of one block in bfloat16."""
    from mmdit.models.blocks import BLOCKS

    torch.manual_seed(0)
    batch, tokens = sizes.block_batch, sizes.adaln[1]
    block = BLOCKS["dit"](sizes.width, sizes.heads).to(sizes.device, torch.bfloat16)
    x = torch.randn(batch, tokens, sizes.width, dtype=torch.bfloat16, device=sizes.device, requires_grad=True)
    c = torch.randn(batch, sizes.width, dtype=torch.bfloat16, device=sizes.device, requires_grad=True)
    d_out = torch.randn_like(x)
    inputs = [x, c, *block.parameters()]

    def run(forward: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(forward(block, x, c), inputs, d_out)

    rows, ways = {}, {}
    for name, backend, is_compiled, sdpa in WAYS:
        rows[name] = Row(section, "block XL/2", f"B{batch} T{tokens}", "bfloat16", "forward+backward", name)
        call = functools.partial(run, forward_of(type(block), is_compiled, sizes))
        ways[name] = lambda call=call, b=backend, s=sdpa: functools.partial(on_backend, b, s, call)  # type: ignore[misc]
    for row in interleave(rows, ways, sizes, pauses=6):
        yield with_work(row, flops=3 * flops_of(sizes, batch))


class Backbone(nn.Module):
    """The blocks of the model between two linear layers, conditioned on a label; needs torch alone."""

    def __init__(self, sizes: Sizes) -> None:
        from mmdit.models.blocks import BLOCKS
        from mmdit.models.layers import AdaLayerNorm

        super().__init__()
        width = sizes.width
        self.embed, self.norm, self.head = nn.Linear(PATCH, width), AdaLayerNorm(width), nn.Linear(width, PATCH)
        self.labels = nn.Embedding(1000, width)
        self.blocks = nn.ModuleList(BLOCKS["dit"](width, sizes.heads) for _ in range(sizes.depth))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        from mmdit.models.blocks import unadded_sums

        x, c = self.embed(x), self.labels(labels)  # (B, T, D), (B, D)
        left = unadded_sums(self.blocks, x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, c, None, None, number not in left)
        return self.head(self.norm(x, c))  # type: ignore[no-any-return]


def model_and_loss(sizes: Sizes) -> tuple[str, nn.Module, Callable[[], Tensor]]:
    """Return a name, a model and its velocity loss on one batch: MultimodalDiT where diffusers is there."""
    torch.manual_seed(0)
    batch, device = sizes.step_batch, sizes.device
    labels = torch.randint(0, 3, (batch,), device=device)
    if importlib.util.find_spec("diffusers") is None:
        backbone = Backbone(sizes).to(device)
        tokens, target = (torch.randn(batch, sizes.adaln[1], PATCH, device=device) for _ in range(2))
        return "training step, blocks of XL/2", backbone, lambda: (backbone(tokens, labels) - target).square().mean()
    from mmdit.models.transformer import MultimodalDiT

    model = MultimodalDiT(hidden_size=sizes.width, depth=sizes.depth, num_heads=sizes.heads).to(device)
    side = 32 if device == "cuda" else 4
    data, noise = (torch.randn(batch, 4, 4, side, side, device=device) for _ in range(2))
    timesteps = torch.rand(batch, 1, device=device).expand(batch, 4).contiguous()
    roles = torch.zeros(batch, 4, dtype=torch.long, device=device)
    t = timesteps[:, :, None, None, None]
    x_t = (1 - t) * data + t * noise

    def loss() -> Tensor:
        velocity = model(x_t, timesteps, roles, model.conditioner(labels)).sample
        return (velocity.float() - (noise - data)).square().mean()

    return "training step XL/2", model, loss


def step_rows(sizes: Sizes, section: str) -> Iterator[Row]:
    """A whole training step; the ways share the weights and the optimizer's state."""
    op, model, loss = model_and_loss(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=sizes.device == "cuda")
    blocks = list(model.blocks)  # type: ignore[arg-type]
    block_class = type(blocks[0])

    def step(forward: Callable[..., Tensor]) -> None:
        set_forward(blocks, forward)
        with torch.autocast(sizes.device, torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    rows, ways = {}, {}
    for name, backend, is_compiled, sdpa in WAYS[:4]:
        shape = f"B{sizes.step_batch} T{sizes.adaln[1]}"
        rows[name] = Row(section, op, shape, "bfloat16 autocast", "step", name)
        call = functools.partial(step, forward_of(block_class, is_compiled, sizes))
        ways[name] = lambda call=call, b=backend, s=sdpa: functools.partial(on_backend, b, s, call)  # type: ignore[misc]
    for row in interleave(rows, ways, sizes, pauses=6, seconds=20.0):
        yield with_work(row, flops=3 * sizes.depth * flops_of(sizes, sizes.step_batch))
