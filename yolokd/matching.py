"""Give the one-to-one branch of an end2end student a target: the teacher's best answer to each ground truth."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from yolokd.compat.boxes import decode, encode, expected_distances, iou
from yolokd.predictions import Assigned, Predictions

# Detections that a teacher gives instead of a grid are about an object from this overlap on.
ANSWERED = 0.5


def match_positives(
    student: Predictions, teacher: Predictions, assigned: Assigned
) -> tuple[Predictions, Predictions, Assigned]:
    """Gather the student's positives and, beside each, the teacher's answer to the same ground truth.

    A one-to-one branch answers each object at a single anchor and says "nothing" at all the others, neighbours
    included. An anchor-wise soft target would teach it the dense teacher's duplicates. So only its positives are
    taught, an object at a time: the teacher may have answered that object at another anchor. Where the teacher speaks
    of single detections (it has ``edges``), an object that none of them overlaps by ``ANSWERED`` is left to the
    detection loss: the nearest detection is about another object.

    Args:
        student: the one-to-one predictions, B images and A anchors.
        teacher: predictions on the same anchors, scores in the student's class space.
        assigned: the one-to-one assignment.

    Returns:
        student, teacher and assignment as one image (B = 1) whose anchors are the K positives. The teacher's boxes
        are plain distances (reg_max 1) from the student's anchor.

    Raises:
        ValueError: the student has no scores or boxes, or the teacher no boxes.
    """
    if student.scores is None or student.boxes is None or teacher.boxes is None:
        raise ValueError("the one-to-one branch needs the student's scores and boxes, and the teacher's boxes")
    image, anchor = assigned.foreground.nonzero(as_tuple=True)
    with torch.no_grad():
        sure = _confidence(teacher, image, assigned.labels[image, anchor])
        if teacher.edges is not None:  # an anchor where the teacher has no word is nobody's answer
            sure = sure * teacher.edges.any(1)[image]
        truth = assigned.boxes[image, anchor]
        best, boxes = _best_answers(teacher.boxes.float(), sure, assigned, image, truth)
        if teacher.edges is not None:
            heard = (iou(boxes, truth) >= ANSWERED) & teacher.edges[image, :, best].any(1)
            image, anchor, best, boxes = image[heard], anchor[heard], best[heard], boxes[heard]
        points, strides = assigned.anchors[anchor], assigned.strides[anchor]
        distances = encode(boxes, points, strides)
        # Without a shared class the boxes alone are taught.
        scores = None if teacher.scores is None else teacher.scores[image, :, best].float().T[None]
    weight = assigned.weight[image, anchor]
    gathered = replace(
        assigned,
        labels=assigned.labels[image, anchor][None],
        boxes=assigned.boxes[image, anchor][None],
        scores=assigned.scores[image, anchor][None],
        foreground=assigned.foreground[image, anchor][None],
        gt_index=assigned.gt_index[image, anchor][None],
        anchors=points,
        strides=strides,
        weight=weight[None],
        seen=None,
    )
    ours = Predictions(student.scores[image, :, anchor].T[None], student.boxes[image, :, anchor].T[None], None)
    edges = None if teacher.edges is None else teacher.edges[image, :, best].T[None]
    theirs = Predictions(scores, distances.T[None], None, teacher.classes, edges=edges)
    return ours, theirs, gathered


def _confidence(teacher: Predictions, image: Tensor, label: Tensor) -> Tensor:
    """How sure the teacher is, at each anchor, of the class of each of K ground truths.

    Returns:
        ``(K, A)`` probabilities; 1 where the teacher does not know the class, so that the box alone decides.
    """
    assert teacher.boxes is not None
    confidence = teacher.boxes.new_ones(len(image), teacher.boxes.shape[2], dtype=torch.float32)
    if teacher.scores is None:
        return confidence
    known = torch.arange(teacher.scores.shape[1], device=label.device) if teacher.classes is None else teacher.classes
    same = known[None] == label[:, None]  # (K, M)
    rows = same.any(1).nonzero().squeeze(1)
    # One row a ground truth, not all of its image's M classes: K * M * A values would not fit for a mosaic.
    confidence[rows] = teacher.scores[image[rows], same[rows].int().argmax(1)].float().sigmoid()
    return confidence


def _best_answers(
    raw: Tensor, confidence: Tensor, assigned: Assigned, image: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each of K ground truths, the teacher's anchor with the highest alignment of class and box.

    The metric is the task-aligned assigner's own, score ** .5 * IoU ** 6 (Feng et al., TOOD, ICCV 2021,
    https://arxiv.org/abs/2108.07755).

    Args:
        raw: ``(B, 4 * reg_max, A)`` edge logits.
        confidence: ``(K, A)``.
        assigned: for its anchors and strides.
        image: ``(K,)`` index of the image.
        truth: ``(K, 4)`` boxes in pixels.

    Returns:
        ``(K,)`` anchors and ``(K, 4)`` boxes in pixels.
    """
    batch, _, total = raw.shape
    distances = expected_distances(raw.transpose(1, 2).flatten(0, 1)).view(batch, total, 4)
    boxes = decode(distances, assigned.anchors, assigned.strides)  # (B, A, 4)
    if not len(truth):  # argmax refuses an empty tensor
        return image, truth
    best = (confidence.sqrt() * iou(boxes[image], truth[:, None]).clamp(min=0).pow(6)).argmax(1)
    return best, boxes[image, best]
