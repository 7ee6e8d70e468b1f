from __future__ import annotations

import torch

from mmdit.flow.alignment import alignment_loss


def test_closed_forms() -> None:
    x = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    assert alignment_loss(x, 7 * x).abs() < 1e-6
    torch.testing.assert_close(alignment_loss(x, -x), torch.tensor(2.0))
    orthogonal = torch.tensor([[[-4.0, 3.0], [1.0, 0.0]]])  # cosines 0 and 1
    torch.testing.assert_close(alignment_loss(x, orthogonal), torch.tensor(0.5))


def test_half_precision_features_do_not_overflow() -> None:
    x = torch.full((1, 2, 64), 6e4, dtype=torch.float16)  # squares are beyond float16
    assert alignment_loss(x, x).abs() < 1e-5
