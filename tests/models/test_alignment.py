from __future__ import annotations

import torch
import torch.nn.functional as F

from mmdit.models.alignment import AlignmentProjector


def test_three_linear_layers_with_silu() -> None:
    torch.manual_seed(0)
    projector = AlignmentProjector(hidden_size=4, projector_size=8, alignment_dim=3)
    x = torch.randn(2, 5, 4)
    first, second, third = (layer for layer in projector.layers if isinstance(layer, torch.nn.Linear))
    expected = third(F.silu(second(F.silu(first(x)))))
    torch.testing.assert_close(projector(x), expected)
    assert projector(x).shape == (2, 5, 3)
