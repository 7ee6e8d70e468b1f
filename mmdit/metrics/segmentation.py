"""Label maps: mean IoU and accuracy of one confusion matrix, objects against background, the main object's class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmdit.errors import UserError
from mmdit.metrics.arrays import Array, RunningMean, check_same_shape, map_batch
from mmdit.names import BACKGROUND_CLASSES


class LabelSet:
    """The classes of a segmentation: which ids exist, which are objects, and which class a category is.

    Args:
        classes: {"id", "name", ...} per class, as in dataset.json.
        background: names of the classes that are not objects; a name that no class has is ignored.
    """

    def __init__(self, classes: Sequence[Mapping[str, Any]], background: Sequence[str] = BACKGROUND_CLASSES) -> None:
        if not classes:
            raise UserError("segmentation classes are an empty list: give at least one {id, name}")
        self.ids = np.array([int(entry["id"]) for entry in classes])
        self.names = [str(entry["name"]) for entry in classes]
        if len(set(self.ids.tolist())) < len(self.ids) or self.ids.min() < 0:
            raise UserError(f"segmentation class ids are {self.ids.tolist()}: give different ids from 0")
        self.is_object = np.array([name not in background for name in self.names])
        self._row_of_id = np.full(int(self.ids.max()) + 1, -1)
        self._row_of_id[self.ids] = np.arange(len(self.ids))

    @classmethod
    def of_codec(cls, codec: Any) -> LabelSet:
        """The classes of a segmentation codec."""
        return cls([{"id": int(i), "name": name} for i, name in zip(codec.ids.tolist(), codec.names, strict=True)])

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, labels: Any) -> Array:
        """Map ids of any shape to row numbers, -1 where no class has the id. Raises ValueError for floats."""
        array = np.asarray(labels)
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"labels have type {array.dtype}: give integer label ids")
        inside = (array >= 0) & (array < len(self._row_of_id))
        return np.where(inside, self._row_of_id[np.where(inside, array, 0)], -1)

    def objects(self, labels: Any) -> Array:
        """Return True where a label is a class other than background."""
        return np.append(self.is_object, False)[self.rows(labels)]

    def id_of(self, category: str | None) -> int | None:
        """The label id of a category, or None where no class has its name."""
        return int(self.ids[self.names.index(category)]) if category in self.names else None

    def majority_object(self, labels: Any) -> int | None:
        """The id of the object class with the most pixels in a map (of equals the first), or None."""
        rows = self.rows(labels)
        counts = np.bincount(rows[rows >= 0].ravel(), minlength=len(self)) * self.is_object
        return int(self.ids[counts.argmax()]) if counts.any() else None


class SegmentationMetrics:
    """Streaming metrics of label maps: one confusion matrix over all pixels of the dataset.

    Args:
        labels: the classes. Pixels with another true label are left out and counted; a predicted label that is
            none of them is wrong.
    """

    columns: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy", "object_iou", "main_object_accuracy")
    higher_is_better: ClassVar[frozenset[str]] = frozenset(columns)

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.confusion = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)  # rows: true; last column: no class
        self.main_object = RunningMean()
        self.num_images = 0
        self.num_without_main_object = 0
        self.invalid_pixels = 0

    @classmethod
    def for_codec(cls, codec: Any, depth_range: tuple[float, float]) -> SegmentationMetrics:
        return cls(LabelSet.of_codec(codec))

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one image, as ``update`` does."""
        self.update(prediction, truth, category)

    def update(self, prediction: Any, target: Any, categories: Sequence[str | None] | str | None = None) -> None:
        """Add images.

        Args:
            prediction, target: label ids, (H, W) or (N, H, W).
            categories: each image's category, for ``main_object_accuracy``. An image with no pixel of that class is
                left out of it and counted.

        Raises:
            ValueError: shapes that differ, labels that are not integers, or a number of categories other than that of images.
        """
        predictions = map_batch(prediction, "predicted labels")
        targets = map_batch(target, "true labels")
        check_same_shape(predictions, targets, "segmentation")
        if categories is None or isinstance(categories, str):
            categories = [categories] * len(targets)
        if len(categories) != len(targets):
            raise ValueError(f"{len(categories)} categories for {len(targets)} images: give one each")
        predicted, true = self.labels.rows(predictions), self.labels.rows(targets)
        valid = true >= 0
        columns = self.confusion.shape[1]
        cells = true[valid] * columns + predicted[valid] % columns  # -1 becomes the last column
        self.confusion += np.bincount(cells, minlength=self.confusion.size).reshape(self.confusion.shape)
        self.invalid_pixels += int(valid.size - valid.sum())
        self.num_images += len(targets)
        for estimate, labels, category in zip(predicted, targets, categories, strict=True):
            self._update_main_object(estimate, labels, category)

    def _update_main_object(self, predicted_rows: Array, target: Array, category: str | None) -> None:
        main = self.labels.id_of(category)
        mask = target == main if main is not None else np.zeros(target.shape, dtype=bool)
        if not mask.any():
            self.num_without_main_object += 1
            return
        rows = predicted_rows[mask] % (len(self.labels) + 1)
        majority = np.bincount(rows, minlength=len(self.labels) + 1).argmax()
        self.main_object.update(majority == self.labels.rows(main))

    def compute(self) -> dict[str, float]:
        """Return the metrics, NaN where nothing was measured, and counts.

        miou: mean over the classes that are true or predicted somewhere; pixel_accuracy; object_iou: objects of any
        class against the rest; main_object_accuracy: share of images whose most frequent predicted class inside the
        main object's true mask, background included, is its category.
        """
        square = self.confusion[:, :-1]
        hits = np.diag(square)
        union = self.confusion.sum(axis=1) + square.sum(axis=0) - hits
        total = self.confusion.sum()
        is_object = self.labels.is_object
        both = square[np.ix_(is_object, is_object)].sum()
        either = self.confusion[is_object].sum() + square[:, is_object].sum() - both
        nan = float("nan")
        return {
            "miou": float((hits[union > 0] / union[union > 0]).mean()) if total else nan,
            "pixel_accuracy": float(hits.sum() / total) if total else nan,
            "object_iou": float(both / either) if either else nan,
            "main_object_accuracy": self.main_object.compute(),
            "num_images": self.num_images,
            "num_without_main_object": self.num_without_main_object,
            "invalid_pixels": self.invalid_pixels,
        }
