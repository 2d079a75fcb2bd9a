"""The same few images with the boxes of everyone, to look at."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.fairness import CONFIDENCE
from yolokd.evaluation.mistakes import sure_of
from yolokd.evaluation.pictures import Frame, picture, save_picture

COUNT = 8
TRUTH = "truth"
_SEED = 0
# Blue, green, red of a class, by its index; all light enough for black letters.
_COLOURS = (
    (80, 190, 255),
    (120, 220, 60),
    (255, 190, 90),
    (200, 150, 255),
    (235, 235, 90),
    (110, 130, 255),
    (200, 200, 200),
)


def choose(images: Sequence[ImageResult], count: int = COUNT) -> list[int]:
    """Choose images by their labels alone, before anyone has looked at what was found in them.

    One of each class in turn, classes and images in a shuffled order that is always the same. Images without objects
    are not chosen.

    Args:
        images: of the split.
        count: how many, where there are so many.

    Returns:
        indices, ascending.
    """
    order = [i for i, image in enumerate(images) if len(image.true_classes)]
    classes = sorted({int(label) for i in order for label in images[i].true_classes})
    for drawn in (order, classes):
        random.Random(_SEED).shuffle(drawn)
    chosen: list[int] = []
    while len(chosen) < min(count, len(order)):
        label = classes[0]
        classes = [*classes[1:], label]
        chosen += [i for i in order if i not in chosen and label in images[i].true_classes][:1]
    return sorted(chosen)


def examples(
    judged: Mapping[str, Sequence[ImageResult]], names: Mapping[int, str], folder: Path, place: str
) -> list[dict[str, Any]]:
    """Draw some images of the split under the labels, and under what each model found with a confidence from .25.

    Args:
        judged: detections by the name of the model, the same images in the same order.
        names: class names by index.
        folder: of the comparison.
        place: where the pictures go, from ``folder``; the place is there.

    Returns:
        for each image ``file`` (its name) and ``images``: a picture's path from ``folder`` by the name of the model,
        and ``truth``. An image that is no longer there is left out.
    """
    entries: list[dict[str, Any]] = []
    for index in choose(next(iter(judged.values()))):
        images = {name: found[index] for name, found in judged.items()}
        first = next(iter(images.values()))
        frames = {TRUTH: _frames(first.true_boxes, first.true_classes, names)}
        for name, image in images.items():
            sure = sure_of(image, CONFIDENCE)
            frames[name] = _frames(sure.boxes, sure.classes, names, sure.scores)
        paths: dict[str, str] = {}
        for name, wanted in frames.items():
            drawn = picture(first.file, wanted)
            if drawn is not None:
                paths[name] = f"{place}/{len(entries)}-{name}.jpg"
                save_picture(folder / paths[name], drawn)
        if paths:
            entries.append({"file": first.file.name, "images": paths})
    return entries


def _frames(
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    names: Mapping[int, str],
    scores: NDArray[np.float64] | None = None,
) -> list[Frame]:
    """Return boxes with their classes, the surest above the others."""
    said = [""] * len(boxes) if scores is None else [f" {score:.2f}" for score in scores]
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable").tolist()
    colours = [_COLOURS[int(label) % len(_COLOURS)] for label in classes]
    return [Frame(boxes[i], colours[i], f"{names[int(classes[i])]}{said[i]}", thick=True) for i in order]
