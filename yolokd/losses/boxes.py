"""Losses on the box edges."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.compat.boxes import decode, expected_distances, iou
from yolokd.predictions import Assigned, Pair, Predictions


class _Answers(NamedTuple):
    """What both heads say at the K anchors that count, and how much each of them counts."""

    student: Tensor  # (K, 4 * reg_max) raw edge logits
    teacher: Tensor
    student_distances: Tensor  # (K, 4) strides
    teacher_distances: Tensor
    student_box: Tensor  # (K, 4) pixels
    teacher_box: Tensor
    strides: Tensor  # (K,) pixels
    weight: Tensor  # (K,) 0 where the teacher's box is the worse one, or it has a word on no edge
    edges: Tensor  # (K, 4) 1 where the teacher has a word on the edge, else 0

    @classmethod
    def gather(cls, name: str, student: Predictions, teacher: Predictions, assigned: Assigned) -> _Answers:
        """Decode the few anchors that count, K of B * A; no gradient to the teacher, none through the weight.

        Args:
            name: of the loss, for the error messages.
            student: predictions with boxes.
            teacher: predictions with boxes on the same anchors.
            assigned: weight, ground truth and anchors.

        Raises:
            ValueError: no boxes, or another number of anchors.
        """
        if student.boxes is None or teacher.boxes is None:
            raise ValueError(f"{name} needs the box logits of student and teacher")
        if student.boxes.shape[2] != teacher.boxes.shape[2]:
            raise ValueError(f"boxes of shape {tuple(student.boxes.shape)} against {tuple(teacher.boxes.shape)}")
        image, anchor = assigned.weight.nonzero(as_tuple=True)
        s = student.boxes[image, :, anchor].float()
        t = teacher.boxes.detach()[image, :, anchor].float()
        points, strides = assigned.anchors[anchor], assigned.strides[anchor]
        s_distances, t_distances = expected_distances(s), expected_distances(t)
        s_box, t_box = decode(s_distances, points, strides), decode(t_distances, points, strides)
        with torch.no_grad():
            truth = assigned.boxes[image, anchor]
            # Without a ground truth (images without labels) there is nothing to judge the teacher by.
            gate = ~assigned.foreground[image, anchor] | (iou(t_box, truth) >= iou(s_box, truth))
            edges = torch.ones_like(t_distances)
            if teacher.edges is not None:
                edges = teacher.edges[image, :, anchor].float()
            weight = assigned.weight[image, anchor] * gate * edges.amax(1)
        return cls(s, t, s_distances, t_distances, s_box, t_box, strides, weight, edges)

    def over_edges(self, terms: Tensor) -> Tensor:
        """The mean over the edges that the teacher has a word on: ``(K, 4)`` to ``(K,)``."""
        return (terms * self.edges).sum(1) / self.edges.sum(1).clamp(min=1)


class LocalizationKD(nn.Module):
    """Match the student's box-edge distributions to the teacher's, where the teacher is the better of the two.

    A DFL head predicts each box edge as a distribution over ``reg_max`` bins, one bin being one stride of the level.
    Where the teacher is unsure of an edge its distribution is flat, which the ground-truth box cannot say. Where one
    of the two heads has no DFL (YOLO26) or other bins, the expected distances are compared instead.

    Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022,
    https://arxiv.org/abs/2102.12252. Departures: anchors are weighted by the assignment's target score instead of
    the paper's valuable localization region; the temperature is 1 by default instead of 10; an anchor counts only
    where the teacher's box fits the ground truth at least as well as the student's (the gate, without gradient), since
    a teacher that is wrong about a box would argue with the detection loss. The form for heads without common bins is
    ours: L1 of the expected distances in units of the teacher's mean box side, plus 1 - IoU.

    Of a teacher that has no word on some edges (``teacher.edges``: clipped by augmentation, or out of the student's
    reach) the others are averaged. Gate and IoU go by the whole box: a clipped edge is where the student's should be,
    only how sure the teacher is of it is not known.

    Args:
        temperature: softens both distributions; the loss is scaled by its square. Not used without common bins.

    Shape:
        student.boxes: ``(B, 4 * reg_max, A)`` raw logits, edges in (left, top, right, bottom) order.
        teacher.boxes: the same, or with another reg_max.
        teacher.edges: ``(B, 4, A)`` bool; None counts all.
        assigned.weight: ``(B, A)``, not negative, 0 on background.
        return: ``()``, nats an edge with common bins, else dimensionless; float32; 0 where every weight is 0
            or no edge counts.

    Raises:
        ValueError: no boxes, another number of anchors, or a temperature that is not positive.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"box.temperature is {temperature}; it must be above 0")
        self.temperature = float(temperature)

    @classmethod
    def for_pair(cls, pair: Pair, *, temperature: float = 1.0) -> LocalizationKD:
        """The loss of a pair; both reg_max are read off the predictions."""
        return cls(temperature)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        at = _Answers.gather("box", student, teacher, assigned)
        if student.reg_max == teacher.reg_max > 1:
            term = at.over_edges(self._divergence(at.student, at.teacher, student.reg_max))
        else:
            sides = at.teacher_box[:, 2:] - at.teacher_box[:, :2]
            side = (sides / at.strides[:, None]).mean(1).clamp(min=1)  # strides
            distance = at.over_edges((at.student_distances - at.teacher_distances).abs())
            term = distance / side + 1 - iou(at.student_box, at.teacher_box)
        return (at.weight * term).sum() / assigned.normalizer

    def _divergence(self, student: Tensor, teacher: Tensor, reg_max: int) -> Tensor:
        """KL(teacher || student) of the bin distributions: ``(K, 4 * reg_max)`` to ``(K, 4)``, an edge each."""
        s = (student.view(-1, 4, reg_max) / self.temperature).log_softmax(-1)
        t = (teacher.view(-1, 4, reg_max) / self.temperature).log_softmax(-1)
        return F.kl_div(s, t, reduction="none", log_target=True).sum(-1) * self.temperature**2


class BoxIoUKD(nn.Module):
    """Bring the student's decoded box to the teacher's, where the teacher is the better of the two.

    The term is 1 - GIoU of the two boxes: it does not ask how a head writes down an edge, so heads with other bins or
    none are treated alike, and an error counts by the share of the box that it is, not by strides.

    Sources: Rezatofighi et al., "Generalized Intersection over Union: A Metric and a Loss for Bounding Box
    Regression", CVPR 2019, https://arxiv.org/abs/1902.09630 (the measure); Yang et al., "Bridging Cross-task Protocol
    Inconsistency for Distillation in Dense Object Detection", ICCV 2023, https://arxiv.org/abs/2308.14286, and Wang
    et al., "CrossKD", CVPR 2024, https://arxiv.org/abs/2306.11369 for heads without bins, whose code distils boxes by
    it. Departures: those compare every anchor, weighted by how far the teacher's class probability is from the
    student's (the former) or by itself (the latter), and CrossKD's boxes come from the teacher's head; here an anchor
    counts by the assignment's target score and, as in ``LocalizationKD``, only where the teacher's box fits the ground
    truth at least as well as the student's (without gradient; no such gate on images without labels). A box turned
    inside out, which a head without bins can say, counts as one without area.

    A box counts whole where the teacher has a word on one of its edges (``teacher.edges``): where augmentation has
    clipped it, the clipped edge is where the student's should be.

    Shape:
        student.boxes: ``(B, 4 * reg_max, A)`` raw logits, edges in (left, top, right, bottom) order.
        teacher.boxes: the same, or with another reg_max.
        teacher.edges: ``(B, 4, A)`` bool; None counts all.
        assigned.weight: ``(B, A)``, not negative, 0 on background.
        return: ``()``, dimensionless, float32, from 0 to 2; 0 where every weight is 0. Two equal boxes give 0, to
            rounding, from a pixel upwards, and about ``1e-7 / area`` below, at most 1: Ultralytics' guard against a
            division by 0.

    Raises:
        ValueError: no boxes, or another number of anchors.
    """

    @classmethod
    def for_pair(cls, pair: Pair) -> BoxIoUKD:
        """The loss of a pair; both reg_max are read off the predictions."""
        return cls()

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        at = _Answers.gather("iou", student, teacher, assigned)
        overlap = iou(_upright(at.student_box), _upright(at.teacher_box), generalized=True)
        return (at.weight * (1 - overlap)).sum() / assigned.normalizer


def _upright(boxes: Tensor) -> Tensor:
    """Let no right or bottom edge lie before its left or top one: ``(K, 4)`` to ``(K, 4)``.

    Two boxes that are both inside out would have a positive area, and GIoU no lower bound.
    """
    first, second = boxes.chunk(2, -1)
    return torch.cat([first, first.maximum(second)], -1)
