"""Losses on the class logits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.predictions import Assigned, Pair, Predictions


class ClassificationKD(nn.Module):
    """Bring the student's class probabilities to the teacher's, most where they differ most.

    A detection head is one sigmoid a class, so the soft target is a binary one for each class; a softmax over classes
    would forget how sure the teacher is that there is anything at all. The modulator ``|sigma(s) - p|`` keeps the
    many background anchors, where both agree, from drowning the few that matter; it is differentiated like the rest.

    Sources: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024,
    https://arxiv.org/abs/2306.11369 (the loss, Quality Focal Loss with beta 1); Yang et al., "Bridging
    Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV 2023,
    https://arxiv.org/abs/2308.14286 (binary soft targets over all anchors). Departures: the student's own head
    predicts, not the teacher's on student features (that is CrossKD's other half); the sum is divided by the
    detection loss's own normaliser, as Ultralytics' ``cls`` is.

    Shape:
        student.scores: ``(B, C, A)`` logits.
        teacher.scores: ``(B, M, A)`` logits of the mapped classes ``teacher.classes``.
        assigned.normalizer: ``()``.
        return: ``()``, float32, 0 where student and teacher agree.

    Raises:
        ValueError: student and teacher have no scores, or another number of anchors.
    """

    @classmethod
    def for_pair(cls, pair: Pair) -> ClassificationKD:
        """The loss of a pair; it has nothing that depends on it."""
        return cls()

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        if student.scores is None or teacher.scores is None:
            raise ValueError("cls needs the class logits of student and teacher")
        logits = student.scores if teacher.classes is None else student.scores[:, teacher.classes]
        if logits.shape != teacher.scores.shape:
            raise ValueError(f"scores of shape {tuple(logits.shape)} against {tuple(teacher.scores.shape)}")
        target = teacher.scores.float().sigmoid()
        logits = logits.float()
        modulator = (logits.sigmoid() - target).abs()
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (modulator * bce).sum() / assigned.normalizer
