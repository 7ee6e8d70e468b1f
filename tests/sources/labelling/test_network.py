"""What networks of every kind share."""

from __future__ import annotations

import torch

from mmdit.sources.labelling.network import join_equal


def test_inputs_of_equal_shapes_are_joined_in_their_order():
    shapes = [(4, 6), (4, 5), (4, 6), (4, 5), (6, 4)]
    inputs = [
        {"pixel_values": torch.full((1, 3, *shape), float(number)), "sizes": torch.tensor([shape])}
        for number, shape in enumerate(shapes)
    ]
    batches = list(join_equal(inputs))
    assert [numbers for numbers, _ in batches] == [[0, 2], [1, 3], [4]]
    for numbers, batch in batches:
        assert batch["pixel_values"].shape == (len(numbers), 3, *shapes[numbers[0]])
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == numbers
        assert batch["sizes"].tolist() == [list(shapes[number]) for number in numbers]
    assert list(join_equal([])) == []
