"""From which probability on a teacher's detections are taken for objects: found on images with labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from yolokd.compat.boxes import grid
from yolokd.compat.validation import hits
from yolokd.predictions import HeadInfo
from yolokd.pseudo import NEVER, detections
from yolokd.teachers.panel import Panel

# A class of which the teacher is always right would else take over its faintest detections, and an augmented image is
# harder than the whole one that the precision was measured on. Ultralytics shows nothing below it either.
FLOOR = 0.25
UNKNOWN = 0.5  # without labels to measure it on: half of the probability
_LEAST = 10  # detections of a class; of fewer the share that is right says little, and all classes together decide

# What the detections of some images were: probability, class, whether they were right.
Judged = tuple[Tensor, Tensor, Tensor]


def judge(panel: Panel, batches: Iterable[Mapping[str, Any]], student: HeadInfo) -> Judged:
    """Let the teachers look at images with labels.

    Args:
        panel: the teachers.
        batches: of Ultralytics, square, after ``preprocess_batch``.
        student: the student's head, with the classes of the data.

    Returns:
        of each detection its probability, its class, and whether an object of that class is there (IoU .5, each
        object once, the best overlap first), on the CPU.
    """
    columns: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    strides = [student.strides[i] for i in panel.levels]
    for batch in batches:
        images: Tensor = batch["img"]
        size = images.shape[-1]
        anchors, per_anchor = (part.to(images.device) for part in grid(size, strides))
        everywhere = torch.ones(len(images), dtype=torch.bool, device=images.device)
        found = detections(panel.ask(batch) or [], everywhere, anchors, per_anchor, len(student.names))
        top, label = found.scores.max(1)
        x, y, w, h = (batch["bboxes"].to(images.device) * size).unbind(1)
        truth = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        for i in range(len(images)):
            here, there = found.image == i, batch["batch_idx"].to(images.device) == i
            objects = batch["cls"].to(images.device)[there].flatten()
            right = hits(found.boxes[here], label[here], truth[there], objects)
            for column, part in zip(columns, (top[here], label[here], right), strict=True):
                column.append(part.cpu())
    top, label, right = (torch.cat(column) if column else torch.zeros(0) for column in columns)
    return top, label.long(), right.bool()


def only(judged: Judged, classes: Sequence[int]) -> Judged:
    """The detections of some classes."""
    kept = torch.isin(judged[1], torch.tensor(list(classes), dtype=torch.long))
    return judged[0][kept], judged[1][kept], judged[2][kept]


def thresholds(judged: Judged, classes: int, precision: float) -> Tensor:
    """``(C,)`` the lowest probability from which on so many of a class's detections are right.

    A class with fewer than ten detections takes the threshold of all classes together. A class that never comes to
    the precision has none: `NEVER`.

    Args:
        judged: from `judge`.
        classes: C.
        precision: the share that is to be right, above 0, at most 1.

    >>> scores, right = torch.tensor([.9] * 9 + [.8, .4, .3]), torch.tensor([1] * 9 + [0, 1, 0]).bool()
    >>> thresholds((scores, torch.zeros(12).long(), right), 2, .9)
    tensor([0.4000, 0.4000])
    """
    top, label, right = judged
    together = _threshold(top, right, precision)
    found = [label == i for i in range(classes)]
    return torch.tensor([_threshold(top[f], right[f], precision) if f.sum() >= _LEAST else together for f in found])


def _threshold(top: Tensor, right: Tensor, precision: float) -> float:
    scores, order = top.sort(descending=True, stable=True)
    count = torch.arange(1, len(scores) + 1)
    good = (right[order].cumsum(0) / count >= precision - 1e-6) & (scores >= FLOOR)
    # Of equal scores all or none are taken.
    good &= torch.cat([scores[1:] < scores[:-1], torch.ones(min(1, len(scores)), dtype=torch.bool)])
    return float(scores[good.nonzero().max()]) if bool(good.any()) else NEVER


def described(values: Tensor, names: Mapping[int, str], precision: float, split: str) -> str:
    """The thresholds in words."""
    said = [f"{names[i]} {v:.2f}" if v < NEVER else f"{names[i]} none" for i, v in enumerate(values.tolist())]
    none = "; none: the teacher never gets there, its answers are soft targets only" if NEVER in values.tolist() else ""
    shown = ", ".join(said[:_SHOWN]) + (f", ... ({len(said)} classes)" if len(said) > _SHOWN else "")
    return f"pseudo-boxes from a probability of {shown} (precision {precision:g} on {split}{none})"


_SHOWN = 12
