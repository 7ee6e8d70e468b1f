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


def test_tokens_of_unequal_length_are_padded_and_the_padding_masked() -> None:
    long = Conditioning(torch.zeros(1, 2), torch.ones(1, 3, 2), subject_ids=torch.tensor([[-1, 0, 0]]))
    short = Conditioning(torch.ones(2, 2), torch.full((2, 1, 2), 2.0), torch.tensor([[True], [False]]))
    label = Conditioning(torch.full((1, 2), 3.0))
    joined = concatenate([long, short, label])
    assert joined.vector[:, 0].tolist() == [0, 1, 1, 3]
    assert joined.tokens is not None
    assert joined.tokens[:, :, 0].tolist() == [[1, 1, 1], [2, 0, 0], [2, 0, 0], [0, 0, 0]]
    assert joined.token_mask is not None
    assert joined.token_mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [False] * 3]
    assert joined.subject_ids is not None
    assert joined.subject_ids.tolist() == [[-1, 0, 0], [-1] * 3, [-1] * 3, [-1] * 3]
    same = concatenate([short, Conditioning(torch.zeros(1, 2), torch.zeros(1, 1, 2))])
    assert same.token_mask is not None
    assert same.token_mask.tolist() == [[True], [False], [True]]
    nothing = concatenate([label, Conditioning(torch.zeros(1, 2), torch.zeros(1, 0, 2))])
    assert nothing.tokens is None
    assert len(nothing.vector) == 2


def test_dtype_is_that_of_numbers_only() -> None:
    mask, ids = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.long)
    moved = Conditioning(torch.zeros(1, 2), torch.zeros(1, 3, 2), mask, ids).to(dtype=torch.bfloat16)
    assert [part.dtype for part in vars(moved).values()] == [torch.bfloat16, torch.bfloat16, torch.bool, torch.int64]
    assert Conditioning(torch.zeros(1, 2)).to("meta").vector.is_meta


def test_is_a_pytree() -> None:
    one = Conditioning(torch.zeros(1, 2), torch.zeros(1, 3, 2))
    doubled = torch.utils._pytree.tree_map(lambda part: None if part is None else part + 1, one)
    assert isinstance(doubled, Conditioning)
    assert doubled.vector.tolist() == [[1, 1]]
    assert doubled.token_mask is None


def test_rows_and_who_asks_for_something() -> None:
    vector, tokens = torch.tensor([[0.0], [1.0], [0.0]]), torch.arange(6.0).view(3, 2, 1)
    mask = torch.tensor([[False, False], [False, False], [True, False]])
    null = Conditioning(torch.zeros(1, 1))
    asked = Conditioning(vector, tokens, mask)
    assert asked.differs_from(null).tolist() == [False, True, True]
    assert Conditioning(vector).differs_from(null).tolist() == [False, True, False]
    assert Conditioning(vector, tokens).differs_from(null).tolist() == [True] * 3
    chosen = asked.rows(torch.tensor([2, 0]))
    assert chosen.vector.tolist() == [[0.0], [0.0]]
    assert chosen.tokens is not None
    assert chosen.tokens[:, :, 0].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert null.rows(slice(2, 3)).vector.tolist() == [[0.0]]  # one for all
