"""Where a detector errs: what it found that is not there, what is there that it did not find."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.agreement import SAME_IOU
from yolokd.evaluation.annotations import from_labels
from yolokd.evaluation.backends import evaluator

# COCO's: areas of a box in pixels of the original image, from here on the next size.
SIZES = {"small": 0, "medium": 32**2, "large": 96**2}


def sure_of(image: ImageResult, confidence: float) -> ImageResult:
    """The image with those detections only whose confidence is at least so high."""
    kept = image.scores >= confidence
    return replace(image, boxes=image.boxes[kept], scores=image.scores[kept], classes=image.classes[kept])


def matches(images: Sequence[ImageResult], names: Mapping[int, str]) -> list[NDArray[np.int64]]:
    """Give each detection its label, as pycocotools does at IoU .5.

    The surest detection chooses first, the label of its class that it overlaps most and that is still free. So what is
    left out at the low end of confidences changes no other match. As many detections as there are take part
    (for AP pycocotools looks at the best 100 of a class in an image).

    Args:
        images: detections and labels in pixels.
        names: class names by index; they hold every class that was found.

    Returns:
        ``(N,)`` for each image: index of the label of each detection, -1 where it has none.

    Raises:
        ValueError: a class was found that has no name.
    """
    data = from_labels(images, names)
    most = [len(image.boxes) for image in images]
    if len(data.detections) != sum(most):
        raise ValueError(f"a class was found that is not among {list(names)}")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        judge = evaluator(data)
        judge.params.iouThrs, judge.params.areaRng = np.array([SAME_IOU]), judge.params.areaRng[:1]
        judge.params.maxDets = [max(most, default=0)]
        judge.evaluate()
    # `from_labels` counts detections and labels from 1 through all images, in their order.
    label = np.zeros(sum(most), np.int64)
    for one in judge.evalImgs:
        if one is not None and one["dtIds"]:
            label[np.array(one["dtIds"]) - 1] = one["dtMatches"][0]
    labels_before = np.cumsum([0, *(len(image.true_boxes) for image in images)])
    found_before = np.cumsum([0, *most])
    parts = [label[found_before[i] : found_before[i + 1]] for i in range(len(images))]
    return [np.where(part > 0, part - 1 - labels_before[i], -1) for i, part in enumerate(parts)]


def found(labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """``(count,)`` which labels of an image were found, of its entry in `matches`."""
    return np.isin(np.arange(count), labels)


def overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU ``(N, M)`` of boxes ``(N, 4)`` and ``(M, 4)``, corners in pixels."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    theirs: list[Any] = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1) for b in (first, second)]
    return np.asarray(mask.iou(*theirs, [0] * len(second)))


def sizes(boxes: NDArray[np.float64]) -> NDArray[np.str_]:
    """``(N,)`` key of `SIZES` of each box ``(N, 4)``, corners in pixels of the original image."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    size = np.searchsorted(list(SIZES.values()), area, side="right").clip(1) - 1
    return np.asarray(np.array(list(SIZES))[size])
