from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmdit.errors import UserError
from mmdit.pipelines.labels import label_ids, resolve_labels

NAMES = {0: "tench, Tinca tinca", 1: "golf ball", 2: "cone", 3: "cone"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [None]),
        (3, [3]),
        (np.int64(3), [3]),
        ("golf ball", [1]),
        ("Golf Ball ", [1]),
        ("Tinca tinca", [0]),
        ("tench, Tinca tinca", [0]),
        ("cone", [2]),  # of equal names the first
        ([1, "cone", None], [1, 2, None]),
        ((0, 1), [0, 1]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor(2), [2]),
        (np.array([1]), [1]),
    ],
)
def test_labels(labels: Any, expected: list[int | None]) -> None:
    assert resolve_labels(labels, 4, NAMES) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cnoe", "unknown category 'cnoe': did you mean 'cone'"),
        (4, "class label 4 .* give 0 to 3"),
        (-1, "class label -1"),
        ([], "empty list"),
        (1.5, "1.5 is a float"),
        (True, "True is a bool"),
        ([1, ["cone"]], "is a list"),
    ],
)
def test_bad_labels(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_labels(labels, 4, NAMES)


def test_names_need_a_model_that_has_some() -> None:
    with pytest.raises(UserError, match="'cone' is a name, and this model has no names: give 0 to 3"):
        resolve_labels("cone", 4, {})
    assert label_ids({}) == {}


@pytest.mark.parametrize("label", ["cone", 0])
def test_model_without_classes(label: Any) -> None:
    assert resolve_labels([None], 0, {}) == [None]
    with pytest.raises(UserError, match=r"class label .*: this model has no classes; leave labels out"):
        resolve_labels(label, 0, {})
