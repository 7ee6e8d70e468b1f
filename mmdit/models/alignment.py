"""The projectors of representation alignment, chosen by name from ``PROJECTORS``.

B batch, T = h w tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmdit.models.layers import reset_linears


class AlignmentProjector(nn.Module):
    """Three linear layers with SiLU: tapped tokens (B, T, D) -> (B, T, alignment_dim), to be compared with a teacher's.

    REPA, arXiv 2410.06940, section 3.2.
    """

    mixes_tokens = False

    def __init__(self, hidden_size: int, projector_size: int, alignment_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, projector_size),
            nn.SiLU(),
            nn.Linear(projector_size, projector_size),
            nn.SiLU(),
            nn.Linear(projector_size, alignment_dim),
        )

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, T, D) -> (B, T, alignment_dim); ``grid`` is not read."""
        return self.layers(x)

    def reset_parameters(self) -> None:
        """Xavier-uniform."""
        reset_linears(self)


class ConvolutionProjector(nn.Module):
    """One 3 x 3 convolution over the grid of tokens, in place of the layers (iREPA, arXiv 2512.10794).

    An MLP mixes away how a token differs from its neighbours; the convolution keeps it. Outside of the grid are zeros.
    """

    mixes_tokens = True

    def __init__(self, hidden_size: int, projector_size: int, alignment_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(hidden_size, alignment_dim, kernel_size=3, padding=1)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, T, D) of a grid (h, w), in row-major order -> (B, T, alignment_dim)."""
        assert grid is not None
        return self.conv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)

    def reset_parameters(self) -> None:
        """PyTorch's own initialisation of a convolution, as in iREPA's code."""
        self.conv.reset_parameters()


PROJECTORS: dict[str, type[AlignmentProjector] | type[ConvolutionProjector]] = {
    "mlp": AlignmentProjector,
    "conv": ConvolutionProjector,
}
