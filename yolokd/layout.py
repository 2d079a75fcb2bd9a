"""Detections of a teacher that has no grid: gathered from what it says, and laid out on the student's anchors."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from yolokd.compat.boxes import decode, encode, expected_distances
from yolokd.compat.detr import assign
from yolokd.predictions import Predictions, SoftDetections

# A class's probability at an anchor of which the teacher says nothing. YOLOv8-s and -n say 2.1e-5 and 2.6e-5 on
# average (16 COCO photographs, 320 px) where their highest class is below CONFIDENCE, the least that is gathered.
BACKGROUND = 2e-5
CONFIDENCE = 0.05
Seen: TypeAlias = "tuple[Tensor, Tensor] | None"  # as in `Assigned`
_CERTAIN = 1e-6  # no probability is nearer to 0 or 1 than this: logits must be finite


def gather_detections(boxes: Tensor, scores: Tensor, confidence: float = CONFIDENCE, most: int = 100) -> SoftDetections:
    """Keep the boxes that a teacher is sure of.

    A box or score that is not a number is kept, so that whoever looks at the teacher's first answer sees it.

    Args:
        boxes: ``(B, N, 4)`` (x1, y1, x2, y2) in pixels.
        scores: ``(B, N, C)`` class probabilities.
        confidence: a box is kept where its highest class has at least this.
        most: boxes kept of an image, the surest.
    """
    best, row = scores.amax(2).topk(min(most, scores.shape[1]), dim=1)
    image, place = (~(best < confidence)).nonzero(as_tuple=True)
    row = row[image, place]
    return SoftDetections(
        boxes[image, row].float(), scores[image, row].float(), image, boxes.new_ones(len(row), 4, dtype=torch.bool)
    )


@torch.no_grad()
def lay_out(
    detections: SoftDetections,
    student: Predictions,
    anchors: Tensor,
    strides: Tensor,
    classes: Tensor | None = None,
    seen: Seen = None,
) -> Predictions:
    """Say on the student's anchors what a teacher says of boxes.

    Ultralytics' task-aligned assigner gives each detection to anchors, by the student's present predictions, as it
    does with a ground truth whose class is the detection's most probable one. Where the grid has the very anchor that
    a detection comes from (see `SoftDetections.points`), that one is given to it whatever the assigner says, and
    repeats the teacher to the accuracy of what was stored.

    Scores: the detection's class probabilities at its best anchor; at its others a mixture with ``BACKGROUND`` by
    their alignment relative to the best. A detection that the student's boxes overlap nowhere is left out, as the
    detection loss's own targets are 0 then.

    Boxes: the edge distributions are shifted to the anchor where they still hold: same stride, same number of bins,
    and an edge that is where the teacher saw it. An anchor at another place measures another distance, so the mass
    moves by the difference, shared between two bins where that is no whole number. Else the box's own distances,
    shared between the two neighbouring bins, which is the target of Ultralytics' DFL. An edge that the student
    cannot say from there (more than half a bin outside of its range) is put into the last bin that it can say and
    masked; a clipped edge is masked too, but its distance is right, so the decoded box is.

    Args:
        detections: N boxes; the columns of their scores are the mapped student classes. Without a column (no class
            is shared) boxes are given by the student's highest class.
        student: dense raw predictions, B images and A anchors.
        anchors: ``(A, 2)`` anchor points (x, y) in pixels.
        strides: ``(A,)`` pixels a cell of each anchor's level.
        classes: ``(C,)`` the student class of each column; None where they are all, in order.
        seen: the student's probabilities and boxes, where somebody has decoded them already (`Assigned.seen`).

    Returns:
        predictions in float32, without gradient: ``scores`` (B, C, A), None without a column; ``boxes``
        (B, 4 * reg_max, A) with the student's reg_max, finite log-probabilities, plain distances where that is 1;
        ``edges`` (B, 4, A). Where nothing was given the box has no area and no edge counts.

    Raises:
        ValueError: the student has no scores or boxes, or other classes than the detections.
    """
    if student.scores is None or student.boxes is None:
        raise ValueError("detections are laid out by the student's scores and boxes")
    ours = student.scores if classes is None else student.scores[:, classes]
    if detections.scores.shape[1] not in (0, ours.shape[1]):
        raise ValueError(f"detections of {detections.scores.shape[1]} classes against {ours.shape[1]} of the student")
    detections = _by_confidence(detections)
    probabilities, decoded = seen or _seen(student, anchors, strides)
    if not detections.scores.shape[1]:
        probabilities = probabilities.amax(2, keepdim=True)
    elif classes is not None:
        probabilities = probabilities[..., classes]
    owner, share = _owners(detections, probabilities, decoded, anchors, strides)
    image, anchor = (owner >= 0).nonzero(as_tuple=True)
    given = _pick(detections, owner[image, anchor])
    raw, known = _edges(given, anchors[anchor], strides[anchor], student.reg_max)
    edges = owner.new_zeros(*owner.shape, 4, dtype=torch.bool)
    edges[image, anchor] = known
    nowhere = _bins(raw.new_zeros(1, 4), student.reg_max).flatten()
    boxes = nowhere.expand(*owner.shape, -1).clone()
    boxes[image, anchor] = raw
    scores = None
    if detections.scores.shape[1]:
        scores = raw.new_full((len(owner), *ours.shape[1:]), math.log(BACKGROUND / (1 - BACKGROUND)))
        said = given.scores.float()
        mixed = torch.lerp(torch.full_like(said, BACKGROUND), said, share[image, anchor, None])
        scores[image, :, anchor] = mixed.logit(_CERTAIN)
    return Predictions(scores, boxes.transpose(1, 2), None, classes, edges=edges.transpose(1, 2))


def _by_confidence(detections: SoftDetections) -> SoftDetections:
    """The surest first: where two overlap an anchor's box alike, the assigner takes the first."""
    sure = detections.scores.sum(1) if not detections.scores.shape[1] else detections.scores.amax(1)
    return _pick(detections, sure.argsort(descending=True, stable=True))


def _pick(detections: SoftDetections, rows: Tensor) -> SoftDetections:
    bins, points, strides = detections.bins, detections.points, detections.strides
    return SoftDetections(
        detections.boxes[rows],
        detections.scores[rows],
        detections.image[rows],
        detections.edges[rows],
        None if bins is None else bins[rows],
        None if points is None else points[rows],
        None if strides is None else strides[rows],
    )


def _seen(student: Predictions, anchors: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """See `Assigned.seen`."""
    assert student.scores is not None
    assert student.boxes is not None
    boxes = decode(expected_distances(student.boxes.float().transpose(1, 2)), anchors, strides)
    return student.scores.float().sigmoid().transpose(1, 2), boxes


def _owners(
    detections: SoftDetections, scores: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor]:
    """Which detection each anchor was given.

    Args:
        detections: N boxes, the surest first.
        scores: ``(B, A, C)`` the student's probabilities of the detections' classes.
        boxes: ``(B, A, 4)`` the student's.
        anchors: ``(A, 2)``.
        strides: ``(A,)``.

    Returns:
        ``(B, A)`` row of the detection, -1 for none; and ``(B, A)`` how well the anchor fits beside the
        detection's best anchor, which has 1.
    """
    batch, number = len(scores), len(detections.image)
    if not number:
        return scores.new_full(scores.shape[:2], -1, dtype=torch.long), scores.new_zeros(scores.shape[:2])
    table = _table(detections.image, batch)
    row = table.clamp(min=0)
    labels = detections.scores.argmax(1) if detections.scores.shape[1] else torch.zeros_like(detections.image)
    place, aligned = assign(
        scores, boxes, anchors, strides, labels[row], detections.boxes.float()[row], table >= 0
    )  # (B, A) each, places within the image
    owner = torch.where(place >= 0, table.gather(1, place.clamp(min=0)), -1)
    best = aligned.new_zeros(number).scatter_reduce(0, owner.clamp(min=0).flatten(), aligned.flatten(), "amax")
    best = best[owner.clamp(min=0)]
    owner = torch.where(best > 0, owner, -1)
    home = _homes(detections, batch, anchors, strides)
    share = torch.where(home >= 0, 1.0, aligned / best.clamp(min=torch.finfo(best.dtype).tiny))
    return torch.where(home >= 0, home, owner), share


def _table(image: Tensor, batch: int) -> Tensor:
    """``(N,)`` image of each row to ``(B, most of an image)`` rows, -1 for padding."""
    counts = image.bincount(minlength=batch)
    order = image.argsort(stable=True)
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image[order]]
    table = image.new_full((batch, int(counts.max())), -1)
    table[image[order], place] = order
    return table


def _homes(detections: SoftDetections, batch: int, anchors: Tensor, strides: Tensor) -> Tensor:
    """``(B, A)`` row of the surest detection that comes from this very anchor, -1 for none."""
    nobody = len(detections.image)
    home = detections.image.new_full((batch * len(anchors),), nobody)
    if detections.points is not None and detections.strides is not None:
        keys, order = _cells(anchors, strides).sort()
        theirs = _cells(detections.points.float(), detections.strides.float())
        anchor = order[torch.searchsorted(keys, theirs).clamp(max=len(order) - 1)]
        # In the same cell of the same level, but there as well? A hundredth of a pixel is rounding.
        same = (strides[anchor] == detections.strides) & ((anchors[anchor] - detections.points).abs().amax(1) < 0.01)
        row = same.nonzero().squeeze(1)
        home.scatter_reduce_(0, detections.image[row] * len(anchors) + anchor[row], row, "amin")
    return torch.where(home < nobody, home, -1).view(batch, -1)


def _cells(points: Tensor, strides: Tensor) -> Tensor:
    """A number for the cell of a level that a point lies in: ``(K, 2)`` pixels and ``(K,)`` strides to ``(K,)``."""
    x, y = (points / strides.clamp(min=1)[:, None]).floor().long().clamp(0, 2**20 - 1).unbind(1)
    return ((strides.long() << 20) + y << 20) + x


def _edges(given: SoftDetections, points: Tensor, strides: Tensor, reg_max: int) -> tuple[Tensor, Tensor]:
    """The edges of K detections seen from an anchor each.

    Args:
        given: K detections.
        points: ``(K, 2)`` anchors in pixels.
        strides: ``(K,)`` pixels a bin there.
        reg_max: bins to say it with; 1 for plain distances.

    Returns:
        ``(K, 4 * reg_max)`` raw edges, and ``(K, 4)`` bool which of them count.
    """
    distances = encode(given.boxes.float(), points, strides)  # (K, 4) strides
    known = given.edges
    if reg_max == 1:
        return distances, known
    known = known & (distances >= -0.5) & (distances <= reg_max - 0.5)
    mass = F.one_hot(torch.zeros_like(distances, dtype=torch.long), reg_max).float()  # all in the first bin, then
    shift = distances  # moved by the whole distance
    bins, origin, scale = given.bins, given.points, given.strides
    if bins is not None and origin is not None and scale is not None and bins.shape[1] == 4 * reg_max:
        holds = given.edges & (scale == strides)[:, None]
        aside = (points - origin) / strides[:, None]  # (K, 2): farther from left and top, nearer to right and bottom
        mass = torch.where(holds[..., None], bins.float().view(-1, 4, reg_max).softmax(-1), mass)
        shift = torch.where(holds, torch.cat([aside, -aside], 1), shift)
    return _bins(shift, reg_max, mass), known


def _bins(shift: Tensor, reg_max: int, mass: Tensor | None = None) -> Tensor:
    """Move distributions over bins.

    Args:
        shift: ``(K, 4)`` bins by which an edge's mass moves; what would leave the range stays in its last bin.
        reg_max: bins an edge; 1 gives the shift back.
        mass: ``(K, 4, reg_max)`` probabilities; None has all in the first bin.

    Returns:
        ``(K, 4 * reg_max)`` log-probabilities, not below that of the smallest normal number.
    """
    if reg_max == 1:
        return shift
    if mass is None:
        mass = F.one_hot(torch.zeros_like(shift, dtype=torch.long), reg_max).float()
    place = (torch.arange(reg_max, device=shift.device) + shift[..., None]).clamp(0, reg_max - 1)  # (K, 4, reg_max)
    lower = place.floor().clamp(max=reg_max - 2)
    upper_share = place - lower
    moved = torch.zeros_like(mass)
    moved.scatter_add_(2, lower.long(), mass * (1 - upper_share))
    moved.scatter_add_(2, lower.long() + 1, mass * upper_share)
    return moved.clamp(min=torch.finfo(moved.dtype).tiny).log().flatten(1)
