"""Does a detector's confidence say how often it is right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.mistakes import matches, sure_of

BINS = 10
# Validation keeps hundreds of boxes an image that no one would use; they would fill the first bin and hide the others.
LEAST = 0.05


def calibration(images: Sequence[ImageResult], names: Mapping[int, str]) -> dict[str, Any]:
    """Return the expected calibration error of a detector, and what it is made of.

    Detections are sorted into ten equally wide bins of confidence. In a bin, confidence and precision (the share that
    is right: matched to a label of its class at IoU .5) should be equal. The error is the mean of their distance,
    each bin counting as many times as it has detections.

    Sources: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    https://arxiv.org/abs/1706.04599; for detectors, where precision stands for accuracy, Küppers, Kronenberger,
    Shantia, Haselhoff, "Multivariate Confidence Calibration for Object Detection", CVPR Workshops 2020,
    https://arxiv.org/abs/2004.13546 (here over confidence alone, not over place and size of the boxes). Departure:
    detections below a confidence of .05 are left out (`LEAST`). Missed objects do not enter.

    Args:
        images: detections and labels in pixels; of several seeds one list after the other.
        names: class names by index.

    Returns:
        ``ece``: from 0 (calibrated) to 1, None without a detection; ``bins``: ``[mean confidence, precision,
        detections]`` of each bin that is not empty, the least confident first.
    """
    kept = [sure_of(image, LEAST) for image in images]
    scores = np.concatenate([np.zeros(0), *(image.scores for image in kept)])
    right = np.concatenate([np.zeros(0, np.int64), *matches(kept, names)]) >= 0
    place = (scores * BINS).astype(np.int64).clip(max=BINS - 1)
    bins = [
        [float(scores[place == k].mean()), float(right[place == k].mean()), int((place == k).sum())]
        for k in np.unique(place)
    ]
    gap = sum(count * abs(confidence - precision) for confidence, precision, count in bins)
    return {"ece": gap / len(scores) if len(scores) else None, "bins": bins}
