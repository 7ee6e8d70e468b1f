from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from mmdit.errors import UserError
from mmdit.models.alignment import AlignmentProjector, ConvolutionProjector
from mmdit.models.transformer import MultimodalDiT


def test_three_linear_layers_with_silu() -> None:
    torch.manual_seed(0)
    projector = AlignmentProjector(hidden_size=4, projector_size=8, alignment_dim=3)
    x = torch.randn(2, 5, 4)
    first, second, third = (layer for layer in projector.layers if isinstance(layer, torch.nn.Linear))
    expected = third(F.silu(second(F.silu(first(x)))))
    torch.testing.assert_close(projector(x), expected)
    assert projector(x).shape == (2, 5, 3)


def test_convolution_sees_the_eight_neighbours_of_a_token() -> None:
    torch.manual_seed(0)
    projector = ConvolutionProjector(hidden_size=4, projector_size=0, alignment_dim=3)
    h, w = 3, 5
    x = torch.randn(2, h * w, 4)
    out = projector(x, (h, w))
    for row, column in ((0, 0), (1, 3), (2, 4)):
        expected = projector.conv.bias.clone().expand(2, 3)
        for i, j in ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if 0 <= row + i < h and 0 <= column + j < w:
                token = x[:, (row + i) * w + column + j]  # (B, D)
                expected = expected + token @ projector.conv.weight[:, :, i + 1, j + 1].T
        torch.testing.assert_close(out[:, row * w + column], expected)


def test_a_network_takes_its_projector_by_name(make_model: Callable[..., MultimodalDiT], make_inputs) -> None:
    model = make_model(alignment_depth=1, alignment_dim=6, alignment_projector="conv")
    inputs = make_inputs(model, height=8, width=4)
    tapped: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda block, args, output: tapped.append(output))
    alignment = model(*inputs, output_alignment=True).alignment
    assert torch.equal(alignment, model.projector(tapped[0], (4, 2)))
    with pytest.raises(UserError, match="unknown alignment_projector 'linear'"):
        make_model(alignment_depth=1, alignment_projector="linear")
