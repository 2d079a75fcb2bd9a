"""COCO's AP of a split in which each image counts as often as one likes.

A bootstrap over images asks for the AP of thousands of resamples of one split. What matches what in an image is the
same in all of them: pycocotools finds it once. Only sorting out precision and recall is done again, for many resamples
at once.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.annotations import CocoData, from_labels
from yolokd.evaluation.backends import evaluator

Array = NDArray[np.float64]
RECALLS = np.linspace(0.0, 1.0, 101)  # as pycocotools has them: 0.07 is compared with this one's last bit
MOST_CELLS = 2**21  # numbers in one working array: 16 MB


@dataclass(frozen=True)
class Category:
    """The detections of one class in all images, the surest first, and how many objects there were.

    Attributes:
        images: ``(N,)`` index of the image of each detection.
        hits: ``(T, N)`` whether it found an object, at each of T overlaps.
        ignored: ``(T, N)`` whether it counts neither as right nor as wrong (it lies in a crowd).
        objects: ``(I,)`` objects to find in each image, without crowds.
    """

    images: NDArray[np.intp]
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: Array

    def precision(self, weights: Array) -> Array:
        """Return the AP of this class at each overlap, each image counted ``weights`` times.

        pycocotools goes through all detections. Its curve (precision, made not to rise with recall) can only change
        at a hit, so that hits are enough: each passes some of the 101 recalls, at the best precision from there on.

        Args:
            weights: ``(I, B)`` of B resamples, not negative.

        Returns:
            ``(T, B)``, NaN where a resample holds no object of this class.
        """
        objects = self.objects @ weights  # (B,)
        counted = weights[self.images]  # (N, B)
        seen = counted.cumsum(0)
        result = np.zeros((len(self.hits), weights.shape[1]))
        for t, (hits, ignored) in enumerate(zip(self.hits, self.ignored, strict=True)):
            judged = seen - (counted * ignored[:, None]).cumsum(0) if ignored.any() else seen
            found = counted[hits].cumsum(0)  # (hits, B)
            # As pycocotools divides; the smallest step is for hits of images that count 0 times.
            precision = found / (judged[hits] + np.spacing(1))
            best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            recall = found / np.where(objects > 0, objects, 1)
            passed = np.diff(np.searchsorted(RECALLS, recall, side="right"), axis=0, prepend=0)
            result[t] = (best * passed).sum(0) / len(RECALLS)
        result[:, objects == 0] = np.nan
        return result


@dataclass(frozen=True)
class Matched:
    """Which detections of a split are right, and the AP of any resample of its images.

    Attributes:
        files: names of the images, in their order.
        categories: what was found of each class, by name.
    """

    files: tuple[str, ...]
    categories: Mapping[str, Category]

    def ap(self, weights: ArrayLike | None = None) -> float | None:
        """AP at IoU .50 to .95, the mean over classes; None where there is no object to find.

        Args:
            weights: ``(I,)`` how often each image counts; None: once.
        """
        return _number(self.resampled(self._row(weights))[0])

    def ap50(self, weights: ArrayLike | None = None) -> float | None:
        """AP at IoU .50, the mean over classes; None where there is no object to find.

        Args:
            weights: ``(I,)`` how often each image counts; None: once.
        """
        return _number(_mean(self._table(self._row(weights), list(self.categories))[:, 0])[0])

    def ap_per_class(self, weights: ArrayLike | None = None) -> dict[str, float | None]:
        """AP at IoU .50 to .95 of each class by name; None where it has no object to find.

        Args:
            weights: ``(I,)`` how often each image counts; None: once.
        """
        row = self._row(weights)
        return {name: _number(self.resampled(row, category=name)[0]) for name in self.categories}

    def resampled(self, weights: ArrayLike, category: str | None = None) -> Array:
        """AP at IoU .50 to .95 of many resamples.

        Equal to pycocotools' AP of the split with each image repeated ``weights`` times, but for detections of one
        class with the very same score: there its order, and so its AP, is that of the list. Here copies of one
        detection stay together, and equal scores come in the order of the images, as in pycocotools.

        Args:
            weights: ``(B, I)`` how often each image counts in each resample.
            category: name of a class; None: the mean over all.

        Returns:
            ``(B,)``, NaN where a resample holds no object to find.

        Raises:
            ValueError: the weights are not of as many images, or negative.
            KeyError: there is no such class.
        """
        return _mean(self._table(weights, list(self.categories) if category is None else [category]).mean(1))

    def _row(self, weights: ArrayLike | None) -> Array:
        return np.ones((1, len(self.files))) if weights is None else np.asarray(weights, dtype=np.float64)[None]

    def _table(self, weights: ArrayLike, names: Sequence[str]) -> Array:
        """Return ``(K, T, B)``: AP of each class at each overlap in each resample."""
        columns = np.asarray(weights, dtype=np.float64).T  # (I, B)
        if columns.ndim != 2 or len(columns) != len(self.files) or (columns < 0).any():
            raise ValueError(f"weights of shape {columns.T.shape} for {len(self.files)} images, or negative ones")
        chosen = [self.categories[name] for name in names]
        step = max(1, MOST_CELLS // max(1, *(len(c.images) for c in chosen)))
        parts = [np.ascontiguousarray(columns[:, i : i + step]) for i in range(0, columns.shape[1], step)]
        return np.concatenate([np.stack([c.precision(part) for c in chosen]) for part in parts], axis=2)


def matched(images: Sequence[ImageResult], names: Mapping[int, str]) -> Matched:
    """Match a split's detections with its labels.

    Args:
        images: detections and labels in pixels.
        names: class names by index.
    """
    return match(from_labels(images, names))


def match(data: CocoData) -> Matched:
    """Match detections with objects as pycocotools does: at most 100 detections a class and image, objects of any size.

    Args:
        data: ground truth, with its crowds, and detections.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        judge = evaluator(data)
        judge.params.maxDets, judge.params.areaRng = [100], judge.params.areaRng[:1]
        judge.evaluate()
    ids, overlaps = judge.params.imgIds, len(judge.params.iouThrs)
    files = {image["id"]: image["file_name"] for image in data.truth["images"]}
    rows = [judge.evalImgs[k * len(ids) : (k + 1) * len(ids)] for k in range(len(judge.params.catIds))]
    names = [data.names[k] for k in judge.params.catIds]
    categories = {name: _category(row, overlaps) for name, row in zip(names, rows, strict=True)}
    return Matched(tuple(files[i] for i in ids), categories)


def _category(row: Sequence[Mapping[str, Any] | None], overlaps: int) -> Category:
    """Return one class of pycocotools' matches; None stands for an image with nothing of it."""
    there = [(index, image) for index, image in enumerate(row) if image is not None]
    scores = np.concatenate([np.zeros(0), *(image["dtScores"] for _, image in there)])
    order = np.argsort(-scores, kind="stable")  # pycocotools': equal scores in the order of the images
    none = np.zeros((overlaps, 0))
    right = np.concatenate([none, *(image["dtMatches"] for _, image in there)], axis=1)[:, order] > 0
    ignored = np.concatenate([none, *(image["dtIgnore"] for _, image in there)], axis=1)[:, order] > 0
    objects = np.zeros(len(row))
    for index, image in there:
        objects[index] = np.count_nonzero(image["gtIgnore"] == 0)
    indices = np.repeat([index for index, _ in there], [len(image["dtScores"]) for _, image in there])
    return Category(indices.astype(np.intp)[order], right & ~ignored, ignored, objects)


def _mean(table: Array) -> Array:
    """Mean over the first axis of what is not NaN; NaN where nothing is left."""
    there = ~np.isnan(table)
    count = there.sum(0)
    return np.where(count > 0, np.where(there, table, 0).sum(0) / np.maximum(count, 1), np.nan)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
