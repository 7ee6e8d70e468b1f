"""Grouping: the latents of all modalities at one location become one token, once on the way in and once on the way out.

B batch, M modalities, C latent channels, H W latent size, p patch size, T = (H / p)(W / p) tokens, D width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmdit.models.layers import AdaLayerNorm, reset_linears, zero_linear


class MultimodalPatchEmbed(nn.Module):
    """(B, M, C, H, W) -> (B, T, D): four modalities cost the tokens of one (MMGen, arXiv 2503.20644, section 3.2)."""

    def __init__(self, num_modalities: int, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(num_modalities * in_channels * patch_size**2, hidden_size)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, M, C, H, W) -> tokens (B, T, D)."""
        p = self.patch_size
        return self.proj(rearrange(latents, "b m c (h p) (w q) -> b (h w) (m c p q)", p=p, q=p))  # (B, T, D)

    def reset_parameters(self) -> None:
        """Xavier-uniform."""
        reset_linears(self)


class MultimodalHead(nn.Module):
    """(B, T, D) -> (B, M, C, H, W): one adaLN and one linear layer per modality; both start at zero, as in DiT."""

    def __init__(self, num_modalities: int, out_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norms = nn.ModuleList(AdaLayerNorm(hidden_size) for _ in range(num_modalities))
        self.linears = nn.ModuleList(
            nn.Linear(hidden_size, patch_size**2 * out_channels) for _ in range(num_modalities)
        )

    def forward(self, x: Tensor, c: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens x (B, T, D) of a grid (h, w), vector c (B, D) -> (B, M, C, H, W)."""
        patches = torch.stack(
            [linear(norm(x, c)) for norm, linear in zip(self.norms, self.linears, strict=True)], dim=1
        )
        h, p = grid[0], self.patch_size
        return rearrange(patches, "b m (h w) (p q c) -> b m c (h p) (w q)", h=h, p=p, q=p)  # (B, M, C, H, W)

    def reset_parameters(self) -> None:
        """All zero; xavier-uniform numbers are drawn first, so that the generator goes on as in every version."""
        reset_linears(self)
        for layer in self.linears:
            zero_linear(layer)
        for norm in self.norms:
            assert isinstance(norm, AdaLayerNorm)
            norm.reset_parameters()
