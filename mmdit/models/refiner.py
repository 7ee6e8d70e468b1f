"""A refiner of a prompt's tokens: trained layers of attention among them, before the blocks read them.

B samples, L tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmdit.models.layers import MLP, CrossAttention, zero_linear

HEAD_DIM = 64


class RefinerLayer(nn.Module):
    """Attention among the tokens, then an MLP, each behind a norm and added; both begin at zero."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        most = max(1, hidden_size // HEAD_DIM)
        num_heads = next(heads for heads in range(most, 0, -1) if hidden_size % heads == 0)
        self.attn_norm = nn.LayerNorm(hidden_size)
        self.attn = CrossAttention(hidden_size, num_heads)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = MLP(hidden_size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, L, D), mask (B, L) bool, True = read -> (B, L, D)."""
        normed = self.attn_norm(tokens)
        tokens = tokens + self.attn(normed, normed, mask)
        return tokens + self.mlp(self.mlp_norm(tokens))

    def map(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """How much each token reads of each, as ``forward`` takes them: (B, L, L)."""
        normed = self.attn_norm(tokens)
        return self.attn.map(normed, normed, mask)


class TokenRefiner(nn.Module):
    """Lets all tokens of a prompt read each other, in both directions.

    A frozen text encoder may not have: in a causal one, CLIP's, "torus" in "a torus left of a cone" knows nothing of what
    follows, so the image would have to find out by itself that this torus is the one on the left. As in HunyuanVideo (arXiv
    2412.03603, section 4.2, "bidirectional token refiner") and Stable Diffusion 3's successors. It begins as the identity.

    Args:
        hidden_size: D.
        depth: number of layers, 0 = it is the identity.
    """

    def __init__(self, hidden_size: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RefinerLayer(hidden_size) for _ in range(depth))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, L, D), mask (B, L) bool, True = read -> (B, L, D)."""
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return tokens

    def start_as_identity(self) -> None:
        """Let what each layer adds begin at zero."""
        for layer in self.layers:
            assert isinstance(layer, RefinerLayer)
            nn.init.zeros_(layer.attn.proj.weight)
            zero_linear(layer.mlp.fc2)
