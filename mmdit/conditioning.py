"""What the transformer is told besides the latents: conditioning is data, whatever kind of prompt it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The prompt as tensors.

    Args:
        vector: (B, D), added to the timestep and role embeddings.
        tokens: (B, L, D) for blocks with cross-attention, or None. A class label has none.
        token_mask: (B, L) bool, True = attend, or None = attend to all.
    """

    vector: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Conditioning:
        """Move every tensor to ``device``."""
        return Conditioning(*(None if part is None else part.to(device) for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.vector, self.tokens, self.token_mask


def concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Join along the batch; all must have the same parts, tokens padded to one length L."""
    parts = zip(*(conditioning._parts() for conditioning in conditionings), strict=True)
    return Conditioning(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]


class Conditioner(Protocol):
    """Turns one kind of prompt into ``Conditioning``; a submodule of the transformer, so it is saved with it."""

    def __call__(self, prompt: Any) -> Conditioning: ...

    def null(self, batch_size: int) -> Conditioning:
        """The conditioning of "no prompt", for classifier-free guidance."""
        ...
