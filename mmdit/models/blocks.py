"""Transformer blocks, chosen by name from ``BLOCKS``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.conditioning import Conditioning
from mmdit.models.layers import (
    MLP,
    CrossAttention,
    JointAttention,
    Rope,
    SelfAttention,
    gated_residual_layernorm_modulate,
    layernorm_modulate,
    matmul_dtype,
    reset_linears,
    residual_is_fused,
    zero_linear,
)


class Residual(NamedTuple):
    """What a block leaves to the next one to add: the tokens are x + gate y, in one operator with the norm behind it.

    Args:
        x: (B, T, D).
        y: (B, T, D).
        gate: (B, D).
    """

    x: Tensor
    y: Tensor
    gate: Tensor

    def added(self) -> Tensor:
        """The tokens, (B, T, D)."""
        return self.x + self.gate[:, None] * self.y


class Block(nn.Module, ABC):
    """One layer of the transformer. A new kind is one subclass and one entry in ``BLOCKS``.

    A subclass of another block can start from a model of the other (``mmdit.models.widen``), where ``start_as_base`` lets
    what it adds begin as exactly zero. One that attends to the prompt's tokens says so in ``attends_to_prompt``, and has
    ``attention_map``.
    """

    attends_to_prompt: ClassVar[bool] = False
    hands_over: ClassVar[bool] = (
        False  # whether ``forward`` takes a ``Residual`` as x, and returns one for ``add=False``
    )

    @abstractmethod
    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, qk_norm: str | None = None) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, c: Tensor, rope: Rope | None = None, context: Conditioning | None = None) -> Tensor:
        """Tokens x (B, T, D), vector c (B, D) of times, roles and prompt, and the prompt's own tokens -> (B, T, D)."""

    def attention_map(self, x: Tensor, c: Tensor, rope: Rope | None, context: Conditioning) -> Tensor:
        """How much each token of the block's input x attends to each of the prompt's L, mean over heads: (B, T, L)."""
        raise NotImplementedError(f"{type(self).__name__} attends to no prompt")

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the initial weights."""

    def start_as_base(self) -> None:
        """Let the block compute what the one does that it derives from, until it is trained."""


class DiTBlock(Block):
    """adaLN-zero block (DiT, arXiv 2212.09748, section 3.2); reads of the prompt only what is in the vector c."""

    hands_over = True

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, qk_norm: str | None = None) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio, qk_norm)
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm)
        self.mlp = MLP(hidden_size, mlp_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(  # type: ignore[override]  # a Residual for add=False alone
        self,
        x: Tensor | Residual,
        c: Tensor,
        rope: Rope | None = None,
        context: Conditioning | None = None,
        add: bool = True,
    ) -> Tensor | Residual:
        """Tokens x (B, T, D) and vector c (B, D) -> (B, T, D); ``context`` is not read.

        x may be what the block before has left to add; ``add=False`` leaves the last sum of this one to the next.
        """
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(c).chunk(6, dim=-1)
        dtype = matmul_dtype(x if isinstance(x, Tensor) else x.x)
        if isinstance(x, Residual):
            x, y = gated_residual_layernorm_modulate(*x, shift_attn, scale_attn, out_dtype=dtype)
        else:
            y = layernorm_modulate(x, shift_attn, scale_attn, out_dtype=dtype)
        y = self._attend(y, rope, context)
        x, y = gated_residual_layernorm_modulate(x, y, gate_attn, shift_mlp, scale_mlp, out_dtype=dtype)
        residual = Residual(x, self.mlp(y), gate_mlp)
        return residual.added() if add else residual

    def _attend(self, y: Tensor, rope: Rope | None, context: Conditioning | None) -> Tensor:
        return self.attn(y, rope)

    def reset_parameters(self) -> None:
        """Xavier-uniform; the modulation begins at zero, so the block as the identity."""
        reset_linears(self)
        zero_linear(self.modulation[-1])


class CrossBlock(DiTBlock):
    """The DiT block behind a cross-attention to the prompt's tokens, which begins at zero (as in Flamingo, arXiv
    2204.14198, section 3.1.2: new layers stand before each trained one, so that its own computation is untouched).

    Samples without tokens, or with a mask that is all False, get from the cross-attention exactly zero: with them it is the
    DiT block, bit for bit, with trained weights too.
    """

    attends_to_prompt = True

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, qk_norm: str | None = None) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio, qk_norm)
        self.cross = CrossAttention(hidden_size, num_heads, qk_norm)

    def forward(  # type: ignore[override]  # a Residual for add=False alone
        self,
        x: Tensor | Residual,
        c: Tensor,
        rope: Rope | None = None,
        context: Conditioning | None = None,
        add: bool = True,
    ) -> Tensor | Residual:
        """Attend to the tokens of ``context``, if it has any, then to x (B, T, D) as the DiT block does."""
        if context is not None and context.tokens is not None and context.tokens.shape[1] > 0:
            x = x if isinstance(x, Tensor) else x.added()
            x = x + self.cross(self._normed(x), context.tokens, context.token_mask)
        return super().forward(x, c, rope, context, add)

    def attention_map(self, x: Tensor, c: Tensor, rope: Rope | None, context: Conditioning) -> Tensor:
        """That of the cross-attention, (B, T, L)."""
        assert context.tokens is not None
        return self.cross.map(self._normed(x), context.tokens, context.token_mask)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)  # its affine part is in the projection of q

    def reset_parameters(self) -> None:
        """As the DiT block; the cross-attention begins at zero."""
        super().reset_parameters()
        self.start_as_base()

    def start_as_base(self) -> None:
        """Let the cross-attention add zero, until it is trained."""
        nn.init.zeros_(self.cross.proj.weight)


class JointBlock(DiTBlock):
    """The DiT block whose self-attention also reads the prompt's tokens, in one sequence with those of the image.

    It has no attention of its own to the prompt, so fewer weights than ``CrossBlock``: q is shared. As in PixArt-α and unlike
    MM-DiT (arXiv 2403.03206) the prompt's tokens are the same in every block: an encoder has read them already.
    Samples without tokens, or with a mask that is all False, get the DiT block, bit for bit, with trained weights too.
    """

    attends_to_prompt = True

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, qk_norm: str | None = None) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio, qk_norm)
        self.attn: JointAttention = JointAttention(hidden_size, num_heads, qk_norm)

    def _attend(self, y: Tensor, rope: Rope | None, context: Conditioning | None) -> Tensor:
        if context is None:
            return self.attn(y, rope)
        return self.attn(y, rope, context.tokens, context.token_mask)

    def attention_map(self, x: Tensor, c: Tensor, rope: Rope | None, context: Conditioning) -> Tensor:
        """The prompt's part of the joint attention, (B, T, L)."""
        assert context.tokens is not None
        shift, scale = self.modulation(c).chunk(6, dim=-1)[:2]
        normed = layernorm_modulate(x, shift, scale, out_dtype=matmul_dtype(x))
        return self.attn.map(normed, rope, context.tokens, context.token_mask)

    def reset_parameters(self) -> None:
        """As the DiT block; the gates begin open."""
        super().reset_parameters()
        nn.init.ones_(self.attn.gate)

    def start_as_base(self) -> None:
        """Close the gates, which then learn to open."""
        nn.init.zeros_(self.attn.gate)


BLOCKS: dict[str, type[Block]] = {"dit": DiTBlock, "cross": CrossBlock, "joint": JointBlock}


def unadded_sums(blocks: Iterable[nn.Module], x: Tensor) -> set[int]:
    """Numbers (1 = the first) of the blocks that leave their last sum to the next one, for tokens x (B, T, D).

    Both can, one kernel does the sum and the norm behind it on the device of x, and no hook of theirs waits for the tokens.
    """
    if not residual_is_fused(x):
        return set()
    able = [isinstance(block, Block) and block.hands_over and not _has_hooks(block) for block in blocks]
    return {number for number, pair in enumerate(pairwise(able), start=1) if all(pair)}


def _has_hooks(block: nn.Module) -> bool:
    return bool(block._forward_hooks or block._forward_pre_hooks) or hasattr(block, "_diffusers_hook")
