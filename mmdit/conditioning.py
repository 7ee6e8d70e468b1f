"""What the transformer is told besides the latents: conditioning is data, whatever kind of prompt it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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


class Conditioner(Protocol):
    """Turns one kind of prompt into ``Conditioning``; a submodule of the transformer, so it is saved with it."""

    def __call__(self, prompt: Any) -> Conditioning: ...

    def null(self, batch_size: int) -> Conditioning:
        """The conditioning of "no prompt", for classifier-free guidance."""
        ...
