"""Whom distillation served badly: classes that lost, and mistakes of the teacher that were learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.agreement import SAME_IOU
from yolokd.evaluation.mistakes import SIZES, found, matches, overlaps, sizes, sure_of
from yolokd.evaluation.precision import Matched
from yolokd.evaluation.statistics import paired

CONFIDENCE = 0.25  # Ultralytics' own for prediction
Boxes = NDArray[np.float64]


def lost_classes(arm: Sequence[Matched], plain: Sequence[Matched], *, resamples: int = 1000) -> list[dict[str, Any]]:
    """Return the classes in which an arm has less AP than plain, the greatest loss first.

    Only where ``high`` is below 0 is the loss more than noise; and of many classes one in forty will say so by chance.

    Args:
        arm: a seed each.
        plain: the same seeds in the same order.
        resamples: bootstrap resamples of the images.

    Returns:
        for each such class ``name``, ``difference`` of AP (arm minus plain, a fraction) and the ends ``low``, ``high``
        of its 95 % interval (see `statistics.paired`), None where seeds or images are too few for a verdict. Classes
        without an object to find are left out.
    """
    there = [name for name, category in plain[0].categories.items() if category.objects.any()]
    of_class = {name: paired(arm, plain, category=name, resamples=resamples) for name in there}
    lost = sorted((d.mean, name) for name, d in of_class.items() if d.mean < 0)
    ends = {n: (d.low, d.high) if d.verdict else (None, None) for n, d in of_class.items()}
    return [{"name": n, "difference": m, "low": ends[n][0], "high": ends[n][1]} for m, n in lost]


class _Mistakes(NamedTuple):
    """What a model did wrong in an image."""

    boxes: Boxes  # (F, 4) false positives
    classes: NDArray[np.int64]  # (F,)
    missed: NDArray[np.bool_]  # (M,) of the labels


def inherited(
    arm: Sequence[Sequence[ImageResult]],
    plain: Sequence[Sequence[ImageResult]],
    teacher: Sequence[ImageResult],
    names: Mapping[int, str],
    *,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
    """Return which share of the teacher's mistakes an arm repeats, beside the share that plain repeats.

    Plain never saw the teacher: what it repeats is what is hard, or wrongly labelled. What an arm repeats beyond that
    may have been learnt from the teacher; but a student that is surer of everything has more false positives, and with
    them more of the teacher's, too. Of every model the detections with at least ``confidence`` count.

    - A false positive is a detection that was matched to no label of its class at IoU .5 (a second box on one object
      is one). It is repeated where the student has a false positive of the same class that overlaps it by IoU .5.
    - A miss is a label that no detection was matched to. It is repeated where the student has not found it either.

    Args:
        arm: detections of each seed, the same images in the same order everywhere.
        plain: detections of each seed.
        teacher: its detections.
        names: class names by index.
        confidence: from 0 to 1.

    Returns:
        ``false_positives`` and ``misses``, each with ``all``, ``by_class`` (of the false positive, or of the label) and
        ``by_size`` (COCO's, of its box: small below 32 x 32 pixels of the original image, large from 96 x 96). In each
        of them ``teacher``: how many mistakes; ``arm``, ``plain``: share repeated, the mean over seeds, None where
        the teacher made none.

    Raises:
        ValueError: the models were not judged on the same images in the same order.
    """
    files = [image.file.name for image in teacher]
    if any([image.file.name for image in run] != files for run in (*arm, *plain)):
        raise ValueError("the models were judged on different images, or in another order")
    theirs = _mistakes(teacher, names, confidence)
    students = {
        word: [_mistakes(run, names, confidence) for run in runs] for word, runs in (("arm", arm), ("plain", plain))
    }
    labels = [
        (image.true_boxes[m.missed], image.true_classes[m.missed]) for image, m in zip(teacher, theirs, strict=True)
    ]
    return {
        "false_positives": _table(
            [(m.boxes, m.classes) for m in theirs],
            {word: [_repeated(theirs, run) for run in runs] for word, runs in students.items()},
            names,
        ),
        "misses": _table(
            labels,
            {word: [_missed_again(theirs, run) for run in runs] for word, runs in students.items()},
            names,
        ),
    }


def _mistakes(images: Sequence[ImageResult], names: Mapping[int, str], confidence: float) -> list[_Mistakes]:
    kept = [sure_of(image, confidence) for image in images]
    return [
        _Mistakes(image.boxes[label < 0], image.classes[label < 0], ~found(label, len(image.true_boxes)))
        for image, label in zip(kept, matches(kept, names), strict=True)
    ]


def _repeated(teacher: Sequence[_Mistakes], student: Sequence[_Mistakes]) -> NDArray[np.bool_]:
    """Return ``(F,)``: which of the teacher's false positives the student has, too."""
    again = [np.zeros(0, np.bool_)]
    for theirs, ours in zip(teacher, student, strict=True):
        same = theirs.classes[:, None] == ours.classes[None]
        again.append((same & (overlaps(theirs.boxes, ours.boxes) >= SAME_IOU)).any(1))
    return np.concatenate(again)


def _missed_again(teacher: Sequence[_Mistakes], student: Sequence[_Mistakes]) -> NDArray[np.bool_]:
    """Return ``(F,)``: which of the teacher's misses the student has not found either."""
    pairs = zip(teacher, student, strict=True)
    return np.concatenate([np.zeros(0, np.bool_), *(ours.missed[theirs.missed] for theirs, ours in pairs)])


def _table(
    mistakes: Sequence[tuple[Boxes, NDArray[np.int64]]],
    repeated: Mapping[str, Sequence[NDArray[np.bool_]]],
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Count the teacher's mistakes, all and by kind, and how often they were repeated."""
    size = sizes(np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _ in mistakes)]))
    label = np.concatenate([np.zeros(0, np.int64), *(classes for _, classes in mistakes)])

    def cell(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        count = int(chosen.sum())
        shares = {w: float(np.mean([s[chosen] for s in runs])) if count else None for w, runs in repeated.items()}
        return {"teacher": count, **shares}

    return {
        "all": cell(np.ones(len(label), np.bool_)),
        "by_class": {name: cell(label == index) for index, name in names.items()},
        "by_size": {name: cell(size == name) for name in SIZES},
    }
