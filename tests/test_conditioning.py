from __future__ import annotations

import torch

from mmdit.conditioning import Conditioning, concatenate


def test_concatenate_joins_every_part_along_the_batch() -> None:
    first = Conditioning(torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.bool))
    second = Conditioning(torch.ones(1, 3), torch.ones(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool))
    joined = concatenate([first, second])
    assert joined.vector.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert joined.tokens is not None
    assert joined.tokens.shape == (3, 4, 3)
    assert joined.token_mask is not None
    assert joined.token_mask[:, 0].tolist() == [True, True, False]


def test_a_label_has_no_tokens() -> None:
    joined = concatenate([Conditioning(torch.zeros(2, 3)), Conditioning(torch.ones(2, 3))]).to("cpu")
    assert joined.tokens is None
    assert joined.token_mask is None
    assert joined.vector.shape == (4, 3)
