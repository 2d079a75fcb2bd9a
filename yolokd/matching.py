"""Give the one-to-one branch of an end2end student a target: the teacher's best answer to each ground truth."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from yolokd.compat.boxes import decode, encode, expected_distances, iou
from yolokd.predictions import Assigned, Predictions


def match_positives(
    student: Predictions, teacher: Predictions, assigned: Assigned
) -> tuple[Predictions, Predictions, Assigned]:
    """Gather the student's positives and, beside each, the teacher's answer to the same ground truth.

    A one-to-one branch answers each object at a single anchor and says "nothing" at all the others, neighbours
    included. An anchor-wise soft target would teach it the dense teacher's duplicates. So only its positives are
    taught, an object at a time: the teacher may have answered that object at another anchor.

    Args:
        student: the one-to-one predictions, B images and A anchors.
        teacher: dense predictions on the same anchors, scores in the student's class space.
        assigned: the one-to-one assignment.

    Returns:
        student, teacher and assignment as one image (B = 1) whose anchors are the K positives. The teacher's boxes
        are plain distances (reg_max 1) from the student's anchor.

    Raises:
        ValueError: student or teacher have no scores or no boxes.
    """
    if student.scores is None or student.boxes is None or teacher.scores is None or teacher.boxes is None:
        raise ValueError("the one-to-one branch needs scores and boxes of student and teacher")
    image, anchor = assigned.foreground.nonzero(as_tuple=True)
    truth, label = assigned.boxes[image, anchor], assigned.labels[image, anchor]
    points, strides = assigned.anchors[anchor], assigned.strides[anchor]
    with torch.no_grad():
        scores, boxes = _best_answers(teacher, assigned, image, truth, label)
        distances = encode(boxes, points, strides)
    weight = assigned.weight[image, anchor]
    gathered = replace(
        assigned,
        labels=label[None],
        boxes=truth[None],
        scores=assigned.scores[image, anchor][None],
        foreground=assigned.foreground[image, anchor][None],
        gt_index=assigned.gt_index[image, anchor][None],
        anchors=points,
        strides=strides,
        weight=weight[None],
    )
    ours = Predictions(student.scores[image, :, anchor].T[None], student.boxes[image, :, anchor].T[None], None)
    theirs = Predictions(scores.T[None], distances.T[None], None, teacher.classes)
    return ours, theirs, gathered


def _best_answers(
    teacher: Predictions, assigned: Assigned, image: Tensor, truth: Tensor, label: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each of K ground truths, the teacher's anchor with the highest alignment of class and box.

    The metric is the task-aligned assigner's own, score ** .5 * IoU ** 6 (Feng et al., TOOD, ICCV 2021,
    https://arxiv.org/abs/2108.07755); where the teacher does not know the class, the box alone decides.

    Returns:
        ``(K, M)`` logits and ``(K, 4)`` boxes in pixels.
    """
    assert teacher.scores is not None
    assert teacher.boxes is not None
    scores, raw = teacher.scores.float(), teacher.boxes.float()
    batch, _, total = raw.shape
    distances = expected_distances(raw.transpose(1, 2).flatten(0, 1)).view(batch, total, 4)
    boxes = decode(distances, assigned.anchors, assigned.strides)  # (B, A, 4)
    fit = iou(boxes[image], truth[:, None]).clamp(min=0)  # (K, A)
    known = torch.arange(scores.shape[1], device=scores.device) if teacher.classes is None else teacher.classes
    same = known[None] == label[:, None]  # (K, M)
    confidence = (scores[image].sigmoid() * same[..., None]).sum(1)  # (K, A)
    confidence = torch.where(same.any(1)[:, None], confidence, torch.ones_like(confidence))
    best = (confidence.sqrt() * fit.pow(6)).argmax(1) if len(truth) else truth.new_zeros(0, dtype=torch.long)
    return scores[image, :, best], boxes[image, best]
