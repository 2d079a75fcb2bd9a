"""The student's features in the teacher's head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.losses.boxes import LocalizationKD
from yolokd.losses.logits import ClassificationKD
from yolokd.predictions import Assigned, HeadInfo, Pair, Predictions

_Widths: TypeAlias = tuple[Sequence[int], Sequence[int]]  # of box branch and class branch, a level each


class CrossHeadKD(nn.Module):
    """Let the teacher's head finish what the student's began, and match what it then says to what it says by itself.

    The student's features after the first convolutions of its own head enter the teacher's head behind as many of its
    convolutions. Two targets no longer pull at one output: the student's predictions answer to the ground truth alone,
    the cross-head predictions to the teacher alone, and they meet in the layers before. Where both agree is what the
    teacher's head makes of them, so a difference that it does not see costs nothing.

    Source: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024,
    https://arxiv.org/abs/2306.11369, with the weights of the first configuration published for GFL: Quality Focal Loss
    (beta 1) on the classes over all anchors, and 4 times the KL divergence of the box edges' bins at temperature 1,
    each anchor weighted by the teacher's highest class probability and divided by the sum of these weights. There is no
    ground truth in it, hence no gate as in ``LocalizationKD``. Where the teacher has no bins (YOLO26) its boxes are
    compared as there, by distance and overlap. Departures: 1x1 convolutions bring the student's widths to the
    teacher's; they have a bias, as nothing behind them removes a constant. The authors' code needs equal widths and
    instead gives each channel of the student the mean and deviation of the teacher's. It enters before the activation,
    we behind it, where a block of Ultralytics' ends. The classes are divided by the detection loss's own normaliser
    instead of the number of positives, and the sum of the box weights counts as 1 at least: where the teacher sees next
    to nothing, the boxes of its background should not count fully. The paper enters behind the third of four
    convolutions; behind the first of two (``depth`` 1), one convolution and the prediction are left to the teacher as
    well.

    Args:
        student: channels inside the student's head at ``depth``, of the box branch and of the class branch.
        teacher: channels inside the teacher's head.
        depth: convolution blocks behind which the student leaves its head and enters the teacher's, at least 1.
        boxes: how much the boxes count, the classes counting 1.

    Shape:
        student.hidden: a ``(B, C_l, H_l, W_l)`` tensor a level for each of the two branches.
        teacher.reenter: takes such features of the teacher's widths to ``scores`` and ``boxes`` as below.
        teacher.scores: ``(B, M, A)`` logits of the mapped classes.
        teacher.boxes: ``(B, 4 * reg_max, A)`` raw logits.
        assigned.normalizer: ``()``.
        return: ``()``, float32, 0 where the teacher's head says the same to both.

    Raises:
        ValueError: no hidden features or no teacher's head to enter, features of other sizes, or options out of range.
    """

    def __init__(self, student: _Widths, teacher: _Widths, depth: int = 1, boxes: float = 4.0) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"crosskd.depth is {depth}; it must be at least 1")
        if not 0 <= boxes < math.inf:
            raise ValueError(f"crosskd.boxes is {boxes}; it must be finite and not below 0")
        self.depth = int(depth)
        self.boxes = float(boxes)
        self.box_adapter, self.class_adapter = (
            nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in zip(mine, theirs, strict=True))
            for mine, theirs in zip(student, teacher, strict=True)
        )
        self.class_loss = ClassificationKD()
        self.distance_loss = LocalizationKD()

    @classmethod
    def for_pair(cls, pair: Pair, *, depth: int = 1, boxes: float = 4.0) -> CrossHeadKD:
        """The loss of a pair, with fresh adapters.

        Raises:
            ValueError: a head cannot be left or entered there, the pyramids differ, or options are out of range.
        """
        for role, head in (("student", pair.student), ("teacher", pair.teacher)):
            _refuse(role, head, depth)
        levels = len(pair.student.strides), len(pair.teacher.strides)
        if levels[0] != levels[1]:
            raise ValueError(
                f"crosskd needs equal pyramids; the student has {levels[0]} levels, the teacher {levels[1]}"
            )
        return cls(pair.student.hidden[depth - 1], pair.teacher.hidden[depth - 1], depth, boxes)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        if student.hidden is None:
            raise ValueError("crosskd needs the features inside the student's head")
        if teacher.reenter is None or teacher.scores is None or teacher.boxes is None:
            raise ValueError("crosskd needs the teacher's head to enter, its class logits and its boxes")
        own = replace(teacher.detach(), classes=None)  # both answers are of the same classes
        boxes, classes = (
            tuple(conv(f.float()) for conv, f in zip(convs, feats, strict=True))
            for convs, feats in zip((self.box_adapter, self.class_adapter), student.hidden, strict=True)
        )
        cross = teacher.reenter((boxes, classes))
        if cross.scores is None or cross.boxes is None:
            raise ValueError("crosskd needs scores and boxes from the teacher's head")
        if cross.boxes.shape != teacher.boxes.shape:
            raise ValueError(f"boxes of shape {tuple(cross.boxes.shape)} against {tuple(teacher.boxes.shape)}")
        term: Tensor = self.class_loss(cross, own, assigned)
        return term + self.boxes * self._boxes(cross, own, assigned)

    def _boxes(self, cross: Predictions, own: Predictions, assigned: Assigned) -> Tensor:
        """Mean difference of the boxes over all anchors, weighted by the teacher's highest class probability."""
        assert cross.boxes is not None
        assert own.boxes is not None
        assert own.scores is not None
        weight = own.scores.float().amax(1).sigmoid()  # (B, A)
        total = weight.sum().clamp(min=1)
        if own.reg_max == 1:
            # Without foreground there is no truth to judge the teacher by, so every anchor passes the gate.
            foreground = torch.zeros_like(weight, dtype=torch.bool)
            everywhere = replace(assigned, weight=weight, normalizer=total, foreground=foreground)
            return self.distance_loss(cross, own, everywhere)  # type: ignore[no-any-return]
        # As LocalizationKD's divergence; in place, since almost every anchor has some weight and gathering them costs
        # three times as much.
        s, t = (p.float().reshape(len(p), 4, own.reg_max, -1).log_softmax(2) for p in (cross.boxes, own.boxes))
        divergence = F.kl_div(s, t, reduction="none", log_target=True).sum(2).mean(1)  # (B, A)
        return (weight * divergence).sum() / total


def _refuse(role: str, head: HeadInfo, depth: int) -> None:
    if not head.hidden:
        raise ValueError(
            f"crosskd enters the teacher's head with features of the student's; the {role} gives no way in"
        )
    if not 1 <= depth <= len(head.hidden):
        raise ValueError(f"crosskd.depth is {depth}; it must be from 1 to {len(head.hidden)} with this {role}")
