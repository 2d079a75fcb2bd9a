"""Losses on the class logits."""

from __future__ import annotations

from typing import ClassVar

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
        target = teacher.scores.detach().float().sigmoid()
        logits = logits.float()
        modulator = (logits.sigmoid() - target).abs()
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (modulator * bce).sum() / assigned.normalizer


class SoftmaxKD(nn.Module):
    """Teach the student which classes the teacher confuses with which, at the anchors that hold an object.

    The classical form: both heads' logits become a distribution over the classes at a temperature, and the student's is
    brought to the teacher's. A shift of all logits of an anchor changes nothing, so it says which class and never
    whether there is an object at all: a detection head with a sigmoid a class needs the detection loss, or ``cls``, for
    that.

    Sources: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning Workshop,
    https://arxiv.org/abs/1503.02531; on the anchors of a dense detector as the classification term of Zheng et al.,
    "Localization Distillation for Dense Object Detection", CVPR 2022, https://arxiv.org/abs/2102.12252. Departures:
    the softmax is over the classes that the teacher knows, of logits that were trained with a sigmoid each; only the
    anchors that count, weighted by the assignment's target score and divided by its sum, take part. An object of
    a class that the teacher does not know is taught too: which of its own classes it resembles. Where a teacher that
    gives detections instead of a grid has none, it says nothing of the class, and its anchor does not count.

    The default temperature is 2, as in configurations published with Localization Distillation. A higher one suits
    few classes: with 80 of them, on two photographs, YOLOv8-s's highest class held .91 of the distribution at 2, .3 at
    4 and .05 at 10 (mean of the anchors with a probability above .25), so that the rest, never trained against each
    other, decides. At 1 it held more than .999 and little beside the label is left, though Chen et al. (NIPS 2017)
    found 1 the best for heads with a real softmax.

    The usual ``alpha * CE + (1 - alpha) * T^2 * KL`` is, but for the factor ``cls / alpha``, Ultralytics' ``cls`` gain
    beside the gain ``cls * (1 - alpha) / alpha`` here. With its ``cls=0.5``: alpha .5 is ``kd:0.5``, alpha .1 is
    ``kd:4.5``.

    Args:
        temperature: softens both distributions; the loss is scaled by its square, so that its gradient keeps its size.

    Shape:
        student.scores: ``(B, C, A)`` logits.
        teacher.scores: ``(B, M, A)`` logits of the mapped classes ``teacher.classes``.
        assigned.weight: ``(B, A)``, not negative, 0 on background.
        return: ``()``, nats an anchor times ``T^2``, float32, 0 where both agree but for a shift. With a single mapped
            class the distribution is always 1 and so the value always 0: hence ``min_classes``.

    Raises:
        ValueError: no scores, another number of anchors or classes, or a temperature that is not finite and positive.
    """

    min_classes: ClassVar[int] = 2
    """Mapped classes below which this loss has nothing to say."""

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"kd.temperature is {temperature}; it must be finite and above 0")
        self.temperature = float(temperature)

    @classmethod
    def for_pair(cls, pair: Pair, *, temperature: float = 2.0) -> SoftmaxKD:
        """The loss of a pair; the classes are read off the predictions."""
        return cls(temperature)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        if student.scores is None or teacher.scores is None:
            raise ValueError("kd needs the class logits of student and teacher")
        batch, classes, anchors = student.scores.shape
        expected = (batch, classes if teacher.classes is None else len(teacher.classes), anchors)
        if teacher.scores.shape != expected:
            raise ValueError(f"scores of shape {expected} against {tuple(teacher.scores.shape)}")
        # Only the few anchors that count are gathered: K of B * A.
        weight = assigned.weight if teacher.edges is None else assigned.weight * teacher.edges.any(1)
        image, anchor = weight.nonzero(as_tuple=True)
        s = student.scores[image, :, anchor].float()  # (K, C)
        t = teacher.scores.detach()[image, :, anchor].float()  # (K, M)
        if teacher.classes is not None:
            s = s[:, teacher.classes]
        s, t = ((logits / self.temperature).log_softmax(1) for logits in (s, t))
        divergence = F.kl_div(s, t, reduction="none", log_target=True).sum(1) * self.temperature**2
        return (weight[image, anchor] * divergence).sum() / assigned.normalizer
