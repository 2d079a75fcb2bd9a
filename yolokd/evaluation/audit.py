"""Labels that may be wrong: where the teacher is sure, and the ground truth says something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.agreement import SAME_IOU
from yolokd.evaluation.mistakes import overlaps, sizes, sure_of
from yolokd.evaluation.pictures import Frame, picture, save_picture

SURE = 0.6  # confidence from which the teacher contradicts a label
LEAST = 0.05  # below this it has seen nothing
PRIOR = 0.05  # share of wrong labels before the teacher has looked at them
APART = 0.1  # IoU below which two boxes have nothing to do with each other
MOST_REASONS = 3  # in one caption
FOLDER = "audit"
LABEL, TEACHER = (120, 220, 60), (0, 140, 255)  # green and orange; blue, green, red


class Doubt(NamedTuple):
    """One thing in an image that teacher and label disagree about.

    Attributes:
        score: how likely the label is wrong, from 0 to 1: for ranking, not a probability.
        reason: in words.
        box: ``(4,)`` corners in pixels.
        labelled: the box is a label's, not the teacher's.
    """

    score: float
    reason: str
    box: NDArray[np.float64]
    labelled: bool


def audit(
    teacher: Sequence[ImageResult], names: Mapping[int, str], folder: Path, *, top: int = 30
) -> list[dict[str, Any]]:
    """Rank the images whose labels a teacher contradicts, and draw them: candidates for a person to look at.

    - A missing label: a detection with a confidence of at least .6 that no label overlaps by IoU .1. It scores its
      confidence.
    - A wrong class: such a detection, no label of its class within IoU .5, a label of another class there. It scores
      its confidence, times 1 minus the highest confidence with which the teacher also sees the label's class there.
    - A doubtful box: a label that no detection of at least .05 overlaps by IoU .1. It scores by Bayes' rule: of the
      labels one in 20 (`PRIOR`) is taken to be wrong and then never seen, while of right ones the share is seen that
      the teacher sees of this class and size (COCO's). What it often overlooks it cannot doubt.

    An image scores as its worst doubt. The teacher should not have been trained on these images, else it has learnt
    their labels, and finds fewer of their mistakes.

    Args:
        teacher: its detections and the labels; detections of low confidence are there, too.
        names: class names by index.
        folder: of the comparison; pictures go to ``audit/`` in it.
        top: how many images at most.

    Returns:
        for each image, the worst first: ``image`` (the picture, from ``folder``), ``file`` (its folder's and its own
        name), ``score`` and ``reason``. An image that is no longer there is left out.
    """
    overlooked = _overlooked(teacher)
    doubts = [(image, d) for image in teacher if (d := doubts_about(image, names, overlooked))]
    doubts.sort(key=lambda pair: -pair[1][0].score)  # stable: equal ones in the order of the images
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    for image, found_here in doubts:
        reason = _summary(found_here)
        drawn = picture(image.file, _frames(image, found_here), f"label green, teacher orange: {reason}")
        if drawn is None:
            continue
        place = f"{FOLDER}/{len(entries):03d}.jpg"
        save_picture(folder / place, drawn)
        file = "/".join(image.file.parts[-2:])
        entries.append({"image": place, "file": file, "score": found_here[0].score, "reason": reason})
        if len(entries) == top:
            break
    return entries


def doubts_about(
    image: ImageResult, names: Mapping[int, str], overlooked: Mapping[tuple[int, str], float]
) -> list[Doubt]:
    """Return what a teacher doubts in an image, the worst first.

    Args:
        image: the teacher's detections and the labels.
        names: class names by index.
        overlooked: share of the labels of each class and size where the teacher sees nothing.
    """
    iou = overlaps(image.boxes, image.true_boxes)  # (N, M)
    order = np.argsort(-image.scores, kind="stable")
    doubts = [d for i in order[image.scores[order] >= SURE] if (d := _about_detection(image, iou, int(i), names))]
    doubts += _about_labels(image, names, overlooked)
    distinct: list[Doubt] = []
    for doubt in sorted(doubts, key=lambda d: -d.score):
        if all(overlaps(doubt.box[None], d.box[None])[0, 0] < SAME_IOU for d in distinct):  # said once an object
            distinct.append(doubt)
    return distinct


def _about_detection(image: ImageResult, iou: NDArray[np.float64], i: int, names: Mapping[int, str]) -> Doubt | None:
    """Return what a sure detection contradicts, if anything."""
    name, score, box = names[int(image.classes[i])], float(image.scores[i]), image.boxes[i]
    if (iou[i] < APART).all():
        return Doubt(score, f"{name} {score:.2f} without a label", box, False)
    own = image.true_classes == image.classes[i]
    other = int(iou[i].argmax())
    if own[other] or iou[i, other] < SAME_IOU or (iou[i][own] >= SAME_IOU).any():
        return None
    agreeing = (image.classes == image.true_classes[other]) & (iou[:, other] >= SAME_IOU)
    against = float(image.scores[agreeing].max(initial=0))
    label = names[int(image.true_classes[other])]
    return Doubt(score * (1 - against), f"{name} {score:.2f} is labelled {label}", box, False)


def _about_labels(
    image: ImageResult, names: Mapping[int, str], overlooked: Mapping[tuple[int, str], float]
) -> list[Doubt]:
    """Return the labels where a teacher that sees such objects elsewhere sees nothing."""
    kinds = _kinds(image)
    return [
        Doubt(
            PRIOR / (PRIOR + (1 - PRIOR) * overlooked[kinds[j]]),
            f"nothing seen at a labelled {names[kinds[j][0]]}",
            image.true_boxes[j],
            True,
        )
        for j in np.flatnonzero(~_seen(image))
    ]


def _overlooked(teacher: Sequence[ImageResult]) -> dict[tuple[int, str], float]:
    """Return for each class and size the share of its labels where the teacher sees nothing."""
    there = Counter(kind for image in teacher for kind in _kinds(image))
    unseen = Counter(_kinds(image)[j] for image in teacher for j in np.flatnonzero(~_seen(image)))
    return {kind: unseen[kind] / count for kind, count in there.items()}


def _seen(image: ImageResult) -> NDArray[np.bool_]:
    """Return ``(M,)``: the labels that some detection overlaps, however unsure and whatever its class."""
    return np.asarray((overlaps(sure_of(image, LEAST).boxes, image.true_boxes) >= APART).any(0))


def _kinds(image: ImageResult) -> list[tuple[int, str]]:
    """Return class and size of each label."""
    return list(zip(image.true_classes.tolist(), sizes(image.true_boxes).tolist(), strict=True))


def _summary(doubts: Sequence[Doubt]) -> str:
    """Return the first reasons, equal ones together."""
    reasons = [f"{n} x {reason}" if n > 1 else reason for reason, n in Counter(d.reason for d in doubts).items()]
    more = len(reasons) - MOST_REASONS
    return "; ".join(reasons[:MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _frames(image: ImageResult, doubts: Sequence[Doubt]) -> list[Frame]:
    """Return labels, then what the teacher is sure of, then the doubts."""
    frames = [Frame(box, LABEL) for box in image.true_boxes]
    frames += [Frame(box, TEACHER) for box in sure_of(image, SURE).boxes]
    return frames + [Frame(d.box, LABEL if d.labelled else TEACHER, str(k), True) for k, d in enumerate(doubts, 1)]
