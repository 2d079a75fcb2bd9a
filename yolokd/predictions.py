"""What a detector says about a batch, and what the detection loss assigned to it: one convention for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

# The features inside a head after one of its convolutions: of the box branch and of the class branch, a level each.
Hidden: TypeAlias = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True)
class HeadInfo:
    """The fixed facts of a detection head that decide what can be compared with what.

    Attributes:
        names: class index to class name.
        strides: pixels a cell of each pyramid level, finest first, e.g. ``(8, 16, 32)``.
        widths: channels of each pyramid level that enters the head.
        reg_max: bins a box edge; 1 where the head regresses the distance itself (YOLO26).
        end2end: the head has a one-to-one branch beside the one-to-many branch (YOLOv10, YOLO26).
        hidden: for each depth, beginning with 1, the widths after that many convolutions of the head: of the box
            branch and of the class branch, a level each. Empty where nobody may enter there.
    """

    names: Mapping[int, str]
    strides: tuple[int, ...]
    widths: tuple[int, ...]
    reg_max: int
    end2end: bool
    hidden: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Pair:
    """Student and teacher head, and how their classes meet.

    Attributes:
        student: the student's head.
        teacher: the teacher's head.

    A loss that is to compare other layers than those before the heads (``taps=``) is given a pair whose strides and
    widths are those of the tapped layers.
    """

    student: HeadInfo
    teacher: HeadInfo


@dataclass(frozen=True)
class SoftDetections:
    """What a teacher saw in a batch of images: N boxes, and what it believes of each.

    Attributes:
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels of the student's input.
        scores: ``(N, C)`` class probabilities; the classes as in `Predictions.scores`.
        image: ``(N,)`` index of the image in the batch, int64.
        edges: ``(N, 4)`` bool: this edge is where the teacher saw it. False where augmentation has cut the box off.
        bins: ``(N, 4 * reg_max)`` edge logits as in `Predictions.boxes`, measured from ``points`` in units of
            ``strides``; None where the teacher has no bins.
        points: ``(N, 2)`` (x, y) in pixels, the anchor that ``bins`` are measured from; None without bins.
        strides: ``(N,)`` pixels a bin; 0 where the bins of this detection say nothing any more (it was scaled).
            None without bins.
    """

    boxes: Tensor
    scores: Tensor
    image: Tensor
    edges: Tensor
    bins: Tensor | None = None
    points: Tensor | None = None
    strides: Tensor | None = None


@dataclass(frozen=True)
class Predictions:
    """The raw output of a detection head for a batch of B images with A anchors.

    What a model cannot give is None; a loss that needs it is refused before training.

    Attributes:
        scores: ``(B, C, A)`` class logits. A teacher's are already in the student's class space: C is then the
            number of mapped classes (``classes`` says which).
        boxes: ``(B, 4 * reg_max, A)`` raw edge logits, edges in (left, top, right, bottom) order, one bin = one stride.
        feats: a ``(B, C_l, H_l, W_l)`` feature map for each pyramid level, finest first.
        classes: ``(C,)`` indices of the student classes that the rows of ``scores`` belong to; None where they are
            all the student's classes in order.
        taps: the features of the layers that ``taps=`` names, ``(B, C_l, H_l, W_l)`` each.
        hidden: the features inside the head after its first convolutions (see `HeadInfo.hidden`).
        reenter: a teacher's head as a door: from hidden features of its own widths to ``scores`` and ``boxes``,
            differentiable with respect to them.
        edges: ``(B, 4, A)`` bool, which edges of ``boxes`` a teacher has a word on; None where it has on all.
        detections: what a teacher gives that has no grid; the criterion lays it out on the student's anchors.
        members: of several teachers, what each says by itself, for losses on features; None for a single one.
    """

    scores: Tensor | None
    boxes: Tensor | None
    feats: tuple[Tensor, ...] | None
    classes: Tensor | None = None
    taps: tuple[Tensor, ...] | None = None
    hidden: Hidden | None = None
    reenter: Callable[[Hidden], Predictions] | None = None
    edges: Tensor | None = None
    detections: SoftDetections | None = None
    members: tuple[Predictions, ...] | None = None

    def detach(self) -> Predictions:
        """The same without a way back for a gradient: what a loss makes of a teacher first of all.

        Nothing reads a teacher's ``hidden``; ``reenter`` stays a door for the student's gradient.
        """
        return replace(
            self,
            scores=None if self.scores is None else self.scores.detach(),
            boxes=None if self.boxes is None else self.boxes.detach(),
            feats=None if self.feats is None else tuple(f.detach() for f in self.feats),
            taps=None if self.taps is None else tuple(f.detach() for f in self.taps),
        )

    @property
    def reg_max(self) -> int:
        """Bins a box edge (1: plain distances).

        Raises:
            ValueError: the predictions hold no boxes.
        """
        if self.boxes is None:
            raise ValueError("predictions without boxes have no reg_max")
        return self.boxes.shape[1] // 4


@dataclass(frozen=True)
class Assigned:
    """The detection loss's own assignment of a batch of B images with A anchors and N ground-truth boxes.

    Attributes:
        labels: ``(B, A)`` class index of each anchor's ground truth, int64; meaningless on background.
        boxes: ``(B, A, 4)`` assigned ground-truth box, (x1, y1, x2, y2) in pixels of the input.
        scores: ``(B, A, C)`` target scores, 0 on background.
        foreground: ``(B, A)`` bool.
        gt_index: ``(B, A)`` index of the ground truth within its image, int64.
        gt_boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels.
        gt_labels: ``(N,)`` class index, int64.
        gt_image: ``(N,)`` index of the image in the batch, int64.
        anchors: ``(A, 2)`` anchor points (x, y) in pixels.
        strides: ``(A,)`` pixels a cell of each anchor's level.
        weight: ``(B, A)`` how much each anchor counts: the target score, and on images without a label the teacher's
            highest class probability where it is sure enough.
        normalizer: ``()`` the sum of ``weight``, at least 1: the Z of every response loss.
        seen: the student's class probabilities ``(B, A, C)`` and boxes ``(B, A, 4)`` in pixels, without gradient, as
            the assigner saw them; None where they were not kept.
    """

    labels: Tensor
    boxes: Tensor
    scores: Tensor
    foreground: Tensor
    gt_index: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_image: Tensor
    anchors: Tensor
    strides: Tensor
    weight: Tensor
    normalizer: Tensor
    seen: tuple[Tensor, Tensor] | None = None
