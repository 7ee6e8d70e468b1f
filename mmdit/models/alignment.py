"""The projector of representation alignment (REPA, arXiv 2410.06940, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from mmdit.models.layers import reset_linears


class AlignmentProjector(nn.Module):
    """Three linear layers with SiLU: tapped tokens (B, T, D) -> (B, T, alignment_dim), to be compared with a teacher's."""

    def __init__(self, hidden_size: int, projector_size: int, alignment_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, projector_size),
            nn.SiLU(),
            nn.Linear(projector_size, projector_size),
            nn.SiLU(),
            nn.Linear(projector_size, alignment_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, alignment_dim)."""
        return self.layers(x)

    def reset_parameters(self) -> None:
        """Xavier-uniform."""
        reset_linears(self)
