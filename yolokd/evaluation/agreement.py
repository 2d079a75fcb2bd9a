"""Do two detectors, or one detector in two formats, find the same boxes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Two boxes of one class are the same object from here on; how far they are apart is told beside.
SAME_IOU = 0.5


@dataclass(frozen=True)
class Agreement:
    """How alike two detectors' boxes are.

    Attributes:
        boxes: boxes of the first detector.
        matched: share of both detectors' boxes that have a partner: same class, IoU of at least .5; None where
            neither found any.
        box: largest difference of a partner's box edge, pixels of the original image.
        score: largest difference of a partner's confidence.
    """

    boxes: int
    matched: float | None
    box: float
    score: float


def compare_boxes(first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]]) -> Agreement:
    """Pair two detectors' boxes image by image: same class, best IoU first, at least .5.

    Args:
        first: an image each, ``(N, 6)``: x1, y1, x2, y2 in pixels, confidence, class.
        second: the other detector's, for the same images.
    """
    partners, box, score = 0, 0.0, 0.0
    for ours, theirs in zip(first, second, strict=True):
        for i, j in _pairs(ours, theirs):
            partners += 1
            box = max(box, float(np.abs(ours[i, :4] - theirs[j, :4]).max()))
            score = max(score, float(abs(ours[i, 4] - theirs[j, 4])))
    boxes = sum(len(x) for x in first)
    total = boxes + sum(len(x) for x in second)
    return Agreement(boxes, 2 * partners / total if total else None, box, score)


def _pairs(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> list[tuple[int, int]]:
    corner = np.minimum(ours[:, None, 2:4], theirs[None, :, 2:4]) - np.maximum(ours[:, None, :2], theirs[None, :, :2])
    shared = corner.clip(0).prod(2)  # (N, M) pixels in both boxes
    areas = [(x[:, 2:4] - x[:, :2]).prod(1) for x in (ours, theirs)]
    iou = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    iou = np.where(ours[:, None, 5] == theirs[None, :, 5], iou, 0.0)
    found: list[tuple[int, int]] = []
    for index in np.argsort(-iou, axis=None, kind="stable"):
        i, j = (int(k) for k in np.unravel_index(index, iou.shape))
        if iou[i, j] < SAME_IOU:
            break
        if all(i != a and j != b for a, b in found):
            found.append((i, j))
    return found
