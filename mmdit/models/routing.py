"""Token routing: some tokens skip a span of blocks in training, and come back as they were (TREAD, arXiv 2501.04765).

B batch, T tokens, K tokens that stay, D width, d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.models.layers import Rope


@dataclass(frozen=True)
class Route:
    """Which tokens go through a span of blocks; the others skip it.

    Args:
        kept: (B, K) int64, numbers of the tokens that go through, each sample's own.
        first, last: numbers of the first and the last block of the span, 1 = the first of the network.
    """

    kept: Tensor
    first: int
    last: int

    def is_sparse_behind(self, number: int) -> bool:
        """Whether only K tokens come out of block ``number``; behind the last of the span all T are there again."""
        return self.first <= number < self.last

    def leave(self, x: Tensor) -> Tensor:
        """Tokens x (B, T, D) -> those that go through, (B, K, D)."""
        return x.gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1]))

    def come_back(self, before: Tensor, x: Tensor) -> Tensor:
        """Put x (B, K, D) in the places of ``before`` (B, T, D), whose other tokens stay as they were."""
        places = self.kept[..., None].expand(-1, -1, x.shape[-1])
        dtype = torch.promote_types(before.dtype, x.dtype)
        return before.to(dtype).scatter(1, places, x.to(dtype))

    def of_rope(self, rope: Rope | None) -> Rope | None:
        """Tables (T, d) of all tokens -> (B, K, d) of each sample's own: a token keeps its place in the image."""
        if rope is None:
            return None
        cos, sin = rope
        return cos[self.kept], sin[self.kept]
