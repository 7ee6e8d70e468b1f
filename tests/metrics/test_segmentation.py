import math

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.segmentation import LabelSet, SegmentationMetrics

CLASSES = [{"id": 0, "name": "floor"}, {"id": 1, "name": "wall"}, {"id": 5, "name": "cone"}, {"id": 7, "name": "torus"}]
FLOOR, WALL, CONE, TORUS = 0, 1, 5, 7


def measure(prediction, target, categories=None):
    metrics = SegmentationMetrics(LabelSet(CLASSES))
    metrics.update(np.asarray(prediction), np.asarray(target), categories)
    return metrics.compute()


def test_by_hand():
    target = [[FLOOR, FLOOR, WALL, CONE], [FLOOR, CONE, CONE, CONE]]
    prediction = [[FLOOR, WALL, WALL, CONE], [FLOOR, CONE, TORUS, FLOOR]]
    # Equal: floor 2, wall 1, cone 2 of 8 pixels.
    # Unions: floor 3 + 3 - 2 = 4, wall 1 + 2 - 1 = 2, cone 4 + 2 - 2 = 4, torus 0 + 1 - 0 = 1.
    # Objects: true 4, predicted 3, both 3 (a cone taken for a torus is an object), either 4.
    result = measure(prediction, target, "cone")
    assert result["pixel_accuracy"] == pytest.approx(5 / 8)
    assert result["miou"] == pytest.approx((2 / 4 + 1 / 2 + 2 / 4 + 0 / 1) / 4)
    assert result["object_iou"] == pytest.approx(3 / 4)
    assert result["main_object_accuracy"] == 1  # 2 of the cone's 4 pixels are cone, 1 torus, 1 floor


def test_a_class_that_nobody_has_is_not_in_the_mean():
    result = measure([[FLOOR, CONE]], [[FLOOR, CONE]])
    assert result["miou"] == 1
    assert result["object_iou"] == 1


def test_the_main_object_is_judged_by_the_majority_inside_its_true_mask():
    target = [[CONE, CONE, CONE, FLOOR, FLOOR]]
    assert measure([[CONE, CONE, FLOOR, TORUS, TORUS]], target, "cone")["main_object_accuracy"] == 1
    assert measure([[CONE, TORUS, TORUS, CONE, CONE]], target, "cone")["main_object_accuracy"] == 0
    assert measure([[CONE, FLOOR, FLOOR, CONE, CONE]], target, "cone")["main_object_accuracy"] == 0


def test_a_distractor_is_not_the_main_object():
    result = measure([[CONE, FLOOR]], [[CONE, TORUS]], "torus")
    assert result["main_object_accuracy"] == 0


def test_images_without_the_main_object_are_counted():
    targets = [[[CONE, FLOOR]], [[FLOOR, FLOOR]], [[CONE, CONE]], [[CONE, CONE]]]
    result = measure(targets, targets, ["cone", "cone", "no such class", None])
    assert result["main_object_accuracy"] == 1
    assert result["num_without_main_object"] == 3


def test_unknown_true_labels_are_left_out_and_unknown_predictions_are_wrong():
    result = measure([[FLOOR, CONE, 255, -1]], [[FLOOR, 3, CONE, 255]])
    assert result["invalid_pixels"] == 2
    assert result["pixel_accuracy"] == 0.5  # floor right, cone predicted as 255
    assert result["miou"] == pytest.approx((1 + 0) / 2)
    assert result["object_iou"] == 0


def test_the_confusion_matrix_is_of_the_whole_dataset():
    # Apart, the cone's IoUs are 1 and 0 (mean 1/2); together 1 of 1 + 3 pixels.
    targets = [[[CONE, FLOOR, FLOOR]], [[CONE, CONE, CONE]]]
    predictions = [[[CONE, FLOOR, FLOOR]], [[TORUS, TORUS, TORUS]]]
    metrics = SegmentationMetrics(LabelSet(CLASSES))
    for prediction, target in zip(predictions, targets, strict=True):
        metrics.update(np.array(prediction), np.array(target))
    assert metrics.compute()["miou"] == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert metrics.compute()["miou"] == measure(predictions, targets)["miou"]


def test_renaming_ids_changes_nothing():
    rng = np.random.default_rng(0)
    ids = np.array([FLOOR, WALL, CONE, TORUS])
    target, prediction = rng.integers(4, size=(3, 6, 6)), rng.integers(4, size=(3, 6, 6))
    renamed = [dict(entry, id=index) for index, entry in enumerate(CLASSES)]
    metrics = SegmentationMetrics(LabelSet(renamed))
    metrics.update(prediction, target, "cone")
    assert metrics.compute() == measure(ids[prediction], ids[target], "cone")


def test_majority_object_of_a_map():
    labels = LabelSet(CLASSES)
    assert labels.majority_object([[FLOOR, FLOOR, FLOOR, TORUS, TORUS, CONE]]) == TORUS
    assert labels.majority_object([[FLOOR, WALL, 255]]) is None
    assert labels.id_of("torus") == TORUS
    assert labels.id_of("sphere") is None
    np.testing.assert_array_equal(labels.objects([[FLOOR, WALL, CONE, 255, -3]]), [[False, False, True, False, False]])


def test_nothing_measured_is_nan():
    result = measure([[255]], [[255]])
    assert all(math.isnan(result[key]) for key in ("miou", "pixel_accuracy", "object_iou", "main_object_accuracy"))
    assert math.isnan(measure([[FLOOR]], [[FLOOR]])["object_iou"])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="prediction has shape"):
        measure(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="integer label ids"):
        measure(np.zeros((2, 2)), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="1 categories for 2 images"):
        measure(np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int), ["cone"])
    with pytest.raises(UserError, match="empty list"):
        LabelSet([])
    with pytest.raises(UserError, match="different ids"):
        LabelSet([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])
