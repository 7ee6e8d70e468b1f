from __future__ import annotations

import torch
import torch.nn.functional as F

from mmdit.models.patch import MultimodalHead, MultimodalPatchEmbed

M, C, P, D = 4, 3, 2, 8


def test_grouping_is_mmgens_convolution() -> None:
    """MMGen: the modalities are concatenated along the channels, then a p x p convolution with stride p."""
    embed = MultimodalPatchEmbed(M, C, P, D)
    latents = torch.randn(2, M, C, 4, 6, generator=torch.Generator().manual_seed(0))
    weight = embed.proj.weight.view(D, M * C, P, P)  # x_embedder.proj.weight
    expected = F.conv2d(latents.flatten(1, 2), weight, embed.proj.bias, stride=P).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(latents), expected)


def test_ungrouping_puts_row_column_channel_of_each_modality_in_place() -> None:
    head = MultimodalHead(M, C, P, D)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    h, w = 2, 3
    x, c = torch.randn(2, h * w, D, generator=generator), torch.randn(2, D, generator=generator)
    out = head(x, c, (h, w))
    assert out.shape == (2, M, C, h * P, w * P)

    for m in range(M):
        shift, scale = F.linear(F.silu(c), head.norms[m].modulation[1].weight, head.norms[m].modulation[1].bias).chunk(
            2, 1
        )
        tokens = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        values = F.linear(tokens, head.linears[m].weight, head.linears[m].bias)  # (B, T, p p C)
        for row in range(h * P):
            for column in range(w * P):
                token = (row // P) * w + column // P
                start = ((row % P) * P + column % P) * C
                torch.testing.assert_close(out[:, m, :, row, column], values[:, token, start : start + C])


def test_a_token_holds_one_location_of_every_modality() -> None:
    embed = MultimodalPatchEmbed(M, C, P, D)
    latents = torch.zeros(1, M, C, 8, 8)
    changed = latents.clone()
    changed[:, 2, 1, 5, 2] = 1  # row 5, column 2 lies in patch (2, 1) of a 4 x 4 grid
    difference = (embed(changed) - embed(latents)).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [2 * 4 + 1]
