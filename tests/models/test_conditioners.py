from __future__ import annotations

import pytest
import torch

from mmdit.conditioning import Conditioner
from mmdit.errors import UserError
from mmdit.models.conditioners import CONDITIONERS, ClassConditioner, make_conditioner


@pytest.fixture
def conditioner() -> ClassConditioner:
    torch.manual_seed(0)
    return ClassConditioner(num_classes=3, hidden_size=4, dropout_prob=0.25)


def test_the_null_label_has_a_row_of_its_own(conditioner: ClassConditioner) -> None:
    table = conditioner.embedding_table.weight
    assert table.shape == (4, 4)
    for null in (conditioner([None, -1]), conditioner(torch.tensor([3, -1])), conditioner.null(2)):
        assert torch.equal(null.vector, table[3].expand(2, -1))
        assert null.tokens is None
    assert torch.equal(conditioner().vector, table[3:])


def test_labels_look_up_their_rows(conditioner: ClassConditioner) -> None:
    expected = conditioner.embedding_table.weight[[2, 0]]
    assert torch.equal(conditioner([2, 0]).vector, expected)
    assert torch.equal(conditioner(torch.tensor([2, 0])).vector, expected)
    with pytest.raises(IndexError):
        conditioner([4])


def test_dropout_is_a_step_of_its_own(conditioner: ClassConditioner) -> None:
    conditioner.train()
    assert torch.equal(conditioner([1] * 50).vector, conditioner.embedding_table.weight[1].expand(50, -1))
    dropped = conditioner.drop(torch.tensor([0, 1, 2, 0]), torch.tensor([0.0, 0.2499, 0.25, 0.9]))
    assert dropped.tolist() == [-1, -1, 2, 0]


def test_prompts_come_from_batches_and_calls(conditioner: ClassConditioner) -> None:
    batch = {"category": torch.tensor([2, -1]), "id": ["a", "b"]}
    assert conditioner.of_batch(batch).tolist() == [2, -1]
    assert conditioner.of_inputs([0, None], None) == [0, None]
    with pytest.raises(UserError, match="this model takes no prompt"):
        conditioner.of_inputs([0], ["a torus"])
    hidden = conditioner.without(torch.tensor([0, 1, 2]), torch.tensor([True, False, True]))
    assert torch.equal(conditioner(hidden).vector[0], conditioner.null(1).vector[0])
    assert hidden.tolist() == [-1, 1, -1]


def test_the_table_holds_conditioners() -> None:
    assert all(issubclass(kind, Conditioner) for kind in CONDITIONERS.values())
    assert isinstance(make_conditioner("class", 3, 4, 0.1), ClassConditioner)
    with pytest.raises(UserError, match="unknown conditioner 'text'"):
        make_conditioner("text", 3, 4, 0.1)
    with pytest.raises(TypeError, match="abstract"):
        Conditioner()  # type: ignore[abstract]
