"""Ultralytics' own distillation loss, so that a run can imitate it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.adapters import adapted_rows, product_dtype, rows
from yolokd.predictions import Assigned, Pair, Predictions


class ScoreWeightedL2(nn.Module):
    """Regress the teacher's features, most where the teacher is sure that there is an object.

    Each position's squared error is weighted by the teacher's highest class probability there. The student's level
    goes through a projector of two 1x1 convolutions with a ReLU between, much heavier than our other adapters: between
    YOLO11-x and YOLO11-n it has 1.65 M parameters, the student 2.62 M, and its second convolution, from the teacher's
    width to the teacher's width, costs most of its time.

    Source: Ultralytics, ``ultralytics/nn/distill_model.py`` (release 8.4),
    https://github.com/ultralytics/ultralytics; its gain is ``dis``, 6 by default. As there, the weighted mean is over
    the whole batch and the levels are added up, not averaged. Departures: the probability is the highest of the
    classes that the student knows, not of all the teacher's; of an end2end teacher the one-to-many branch is asked, not
    the mean of the logits of both; with an end2end student the criterion lets the term fade with the one-to-many
    branch, Ultralytics keeps it; under a bfloat16 teacher the projector multiplies in bfloat16 too.

    Args:
        student_widths: channels of each student level.
        teacher_widths: channels of each teacher level.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level, before the teacher's head.
        teacher.scores: ``(B, M, A)`` logits, A the positions of all levels.
        return: ``()``, squared units of the teacher's features, float32; 0 where every probability is 0.

    Raises:
        ValueError: no features or scores, another number of levels, levels of other sizes, or scores that
            belong to another grid.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int]) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths):
            raise ValueError(f"{len(student_widths)} student levels against {len(teacher_widths)} teacher levels")
        self.widths = tuple(teacher_widths)
        self.projector = nn.ModuleList(
            nn.Sequential(nn.Conv2d(s, t, 1), nn.ReLU(inplace=True), nn.Conv2d(t, t, 1))
            for s, t in zip(student_widths, teacher_widths, strict=True)
        )

    @classmethod
    def for_pair(cls, pair: Pair) -> ScoreWeightedL2:
        """The loss of a pair, with a fresh projector."""
        return cls(pair.student.widths, pair.teacher.widths)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        if student.feats is None or teacher.feats is None or teacher.scores is None:
            raise ValueError("sl2 needs the pyramid features of student and teacher and the teacher's class logits")
        teacher = teacher.detach()
        assert teacher.feats is not None
        assert teacher.scores is not None
        if not len(student.feats) == len(teacher.feats) == len(self.projector):
            raise ValueError(f"{len(student.feats)} student levels against {len(teacher.feats)} teacher levels")
        positions = [f.shape[2] * f.shape[3] for f in teacher.feats]
        if sum(positions) != teacher.scores.shape[2]:
            raise ValueError(f"levels of {positions} positions against scores of shape {tuple(teacher.scores.shape)}")
        sure = torch.split(teacher.scores.float().amax(1).sigmoid(), positions, 1)  # a (B, H_l * W_l) a level
        total = student.feats[0].new_zeros((), dtype=torch.float32)
        for project, width, s, t, weight in zip(
            self.projector, self.widths, student.feats, teacher.feats, sure, strict=True
        ):
            if (s.shape[0], width, *s.shape[2:]) != t.shape:
                raise ValueError(f"projected student level of {tuple(s.shape)} against teacher level {tuple(t.shape)}")
            error = (self._project(project, s, product_dtype(t)) - rows(t).float()).square().sum(1)  # (B * H_l * W_l,)
            total = total + (error * weight.flatten()).sum() / (weight.sum() * t.shape[1] + 1e-9)
        return total

    @staticmethod
    def _project(project: Any, level: Tensor, dtype: torch.dtype) -> Tensor:
        """The two convolutions as products of matrices: ``(B, C, H, W)`` to ``(B * H * W, D)`` in float32."""
        first, _, second = project
        hidden = F.linear(rows(level).to(dtype), first.weight.flatten(1).to(dtype), first.bias.to(dtype)).relu()
        return adapted_rows(hidden, second.weight.flatten(1), second.bias, dtype)
