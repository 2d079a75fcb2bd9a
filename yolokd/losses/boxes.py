"""Losses on the box edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.compat.boxes import decode, expected_distances, iou
from yolokd.predictions import Assigned, Pair, Predictions


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

    Args:
        temperature: softens both distributions; the loss is scaled by its square. Not used without common bins.

    Shape:
        student.boxes: ``(B, 4 * reg_max, A)`` raw logits, edges in (left, top, right, bottom) order.
        teacher.boxes: the same, or with another reg_max.
        assigned.weight: ``(B, A)``, not negative, 0 on background.
        return: ``()``, nats an edge with common bins, else dimensionless; float32; 0 where every weight is 0.

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
        if student.boxes is None or teacher.boxes is None:
            raise ValueError("box needs the box logits of student and teacher")
        if student.boxes.shape[2] != teacher.boxes.shape[2]:
            raise ValueError(f"boxes of shape {tuple(student.boxes.shape)} against {tuple(teacher.boxes.shape)}")
        # Only the few anchors that count are gathered: K of B * A.
        image, anchor = assigned.weight.nonzero(as_tuple=True)
        s = student.boxes[image, :, anchor].float()  # (K, 4 * reg_max)
        t = teacher.boxes[image, :, anchor].float()
        points, strides = assigned.anchors[anchor], assigned.strides[anchor]
        s_distances, t_distances = expected_distances(s), expected_distances(t)
        s_box, t_box = decode(s_distances, points, strides), decode(t_distances, points, strides)
        with torch.no_grad():
            truth = assigned.boxes[image, anchor]
            # Without a ground truth (images without labels) there is nothing to judge the teacher by.
            gate = ~assigned.foreground[image, anchor] | (iou(t_box, truth) >= iou(s_box, truth))
            weight = assigned.weight[image, anchor] * gate
        if student.reg_max == teacher.reg_max > 1:
            term = self._divergence(s, t, student.reg_max)
        else:
            side = ((t_box[:, 2:] - t_box[:, :2]) / strides[:, None]).mean(1).clamp(min=1)  # strides
            term = (s_distances - t_distances).abs().mean(1) / side + 1 - iou(s_box, t_box)
        return (weight * term).sum() / assigned.normalizer

    def _divergence(self, student: Tensor, teacher: Tensor, reg_max: int) -> Tensor:
        """KL(teacher || student) a bin distribution, mean of the four edges: ``(K, 4 * reg_max)`` to ``(K,)``."""
        s = (student.view(-1, 4, reg_max) / self.temperature).log_softmax(-1)
        t = (teacher.view(-1, 4, reg_max) / self.temperature).log_softmax(-1)
        return F.kl_div(s, t, reduction="none", log_target=True).sum(-1).mean(1) * self.temperature**2
