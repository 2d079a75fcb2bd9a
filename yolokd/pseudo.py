"""Targets for images that nobody has labelled, from what the teacher detects there.

Confident detections become boxes for the detection loss. What the teacher is unsure about is neither object nor
background: the class term of the detection loss is silent there, and the distillation losses alone speak, with the
teacher's own doubt as their target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms  # type: ignore[import-untyped]

from yolokd.compat.boxes import decode, expected_distances
from yolokd.predictions import Assigned, Predictions, SoftDetections

UNSURE = 0.1  # below, the teacher takes it for background; the cache of a teacher's answers keeps no less either
NEVER = 2.0  # a threshold that no probability reaches
_NMS = 0.7  # Ultralytics' own IoU
# On an image without labels an anchor counts where the teacher is at least this sure of some class.
UNLABELLED_CONFIDENCE = 0.25
_LEAST = 2.0  # pixels; a side below is the rest of an object that augmentation has cut off


@dataclass(frozen=True)
class PseudoTargets:
    """What a batch is taught beside its labels.

    Attributes:
        boxes: ``(N, 4)`` (x1, y1, x2, y2) pixels, image after image.
        labels: ``(N,)`` class index, int64.
        image: ``(N,)`` index of the image in the batch, int64.
        ignored: ``(B, A, C)`` bool: the class term says nothing of this class at this anchor.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    ignored: Tensor

    def beside(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with these boxes among its labels, in the order of the images, as Ultralytics' loss needs them."""
        height, width = batch["img"].shape[-2:]
        x1, y1, x2, y2 = (self.boxes / self.boxes.new_tensor([width, height, width, height])).unbind(1)
        found = {
            "batch_idx": self.image,
            "cls": self.labels[:, None],
            "bboxes": torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1),
        }
        given = {key: batch[key].to(value.device) for key, value in found.items()}
        both = {key: torch.cat([given[key], value.to(given[key].dtype)]) for key, value in found.items()}
        order = both["batch_idx"].argsort(stable=True)
        return {**batch, **{key: value[order] for key, value in both.items()}}


class PseudoLabels:
    """Parts a teacher's detections on images without labels into targets and doubts.

    Args:
        thresholds: ``(C,)`` the probability from which a detection of each of the student's classes is a target.
        taught: ``(C,)`` bool, classes that some teacher speaks for; None: all. Nobody knows whether there is one of
            the others, so they are in doubt everywhere.
        until: the epoch from which images without labels do not count at all any more (``refine_epochs=``).
    """

    def __init__(self, thresholds: Tensor, taught: Tensor | None = None, until: float = math.inf) -> None:
        self.thresholds = thresholds
        self.taught = torch.ones_like(thresholds, dtype=torch.bool) if taught is None else taught
        self.until = until

    def __call__(
        self, found: SoftDetections, unlabelled: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> PseudoTargets:
        """The targets of a batch.

        Args:
            found: what the teachers see in it, with a column for each of the student's classes.
            unlabelled: ``(B,)`` bool; the other images have labels.
            anchors: ``(A, 2)`` of all the student's levels, pixels.
            size: width and height of the images, pixels.
        """
        limit = found.boxes.new_tensor([*size, *size])
        boxes = found.boxes.clamp(min=0).minimum(limit)
        sides = boxes[:, 2:] - boxes[:, :2]
        top, label = found.scores.max(1)
        sure = top >= self.thresholds.to(top.device)[label]
        target = sure & (sides >= _LEAST).all(1)
        order = found.image[target].argsort(stable=True)
        ignored = doubts(boxes[~sure], found.scores[~sure], found.image[~sure], len(unlabelled), anchors)
        untaught = unlabelled.to(ignored.device)[:, None] & ~self.taught.to(ignored.device)  # (B, C)
        return PseudoTargets(
            boxes[target][order], label[target][order], found.image[target][order], ignored | untaught[:, None]
        )

    @staticmethod
    def nothing(unlabelled: Tensor, anchors: Tensor, classes: int) -> PseudoTargets:
        """Neither targets nor background on images without labels: these do not count for the detection loss."""
        none = anchors.new_zeros((0,), dtype=torch.long)
        ignored = unlabelled.to(anchors.device)[:, None, None].expand(-1, len(anchors), classes)
        return PseudoTargets(anchors.new_zeros((0, 4)), none, none, ignored)


def doubts(boxes: Tensor, scores: Tensor, image: Tensor, images: int, anchors: Tensor) -> Tensor:
    """``(images, A, C)`` bool: the anchor lies in a box of which the teacher is unsure whether it is of this class.

    A box too small to hold an anchor stands for the anchor that is nearest to its middle.

    Args:
        boxes: ``(N, 4)`` (x1, y1, x2, y2) pixels.
        scores: ``(N, C)`` probabilities.
        image: ``(N,)`` index of each box's image.
        images: how many there are.
        anchors: ``(A, 2)`` (x, y) pixels.
    """
    x, y = anchors.unbind(1)
    unsure = scores >= UNSURE
    rows = []
    for i in range(images):  # image by image: (N, A, C) of a whole batch would take gigabytes
        here = image == i
        x1, y1, x2, y2 = boxes[here].unbind(1)
        inside = (x >= x1[:, None]) & (x <= x2[:, None]) & (y >= y1[:, None]) & (y <= y2[:, None])  # (N_i, A)
        middle = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2], 1)
        inside |= torch.zeros_like(inside).scatter_(
            1, torch.cdist(middle, anchors.float()).argmin(1, keepdim=True), True
        )
        rows.append(inside.T.float() @ unsure[here].float() > 0)
    return torch.stack(rows)


def detections(
    answers: Sequence[Predictions], wanted: Tensor, anchors: Tensor, strides: Tensor, classes: int
) -> SoftDetections:
    """What the teachers see in some images of a batch, each object once.

    Args:
        answers: of each teacher, in the student's classes, on the student's taught levels or as detections.
        wanted: ``(B,)`` bool, the images that are asked about.
        anchors: ``(A, 2)`` of the taught levels, pixels.
        strides: ``(A,)`` pixels.
        classes: of the student, C.

    Returns:
        boxes with ``(N, C)`` probabilities; those of classes that no teacher speaks for are 0.
    """
    parts = [_of_one(said, wanted, anchors, strides, classes) for said in answers]
    boxes, scores, image = (torch.cat(column) for column in zip(*parts, strict=True))
    top, label = scores.max(1)
    kept = batched_nms(boxes, top, image * classes + label, _NMS)
    boxes, scores, image = boxes[kept], scores[kept], image[kept]
    return SoftDetections(boxes, scores, image, torch.ones_like(boxes, dtype=torch.bool))


def _of_one(
    said: Predictions, wanted: Tensor, anchors: Tensor, strides: Tensor, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, probabilities of all classes and images of one teacher's answer, before NMS."""
    wanted = wanted.to(anchors.device)
    if said.detections is not None:
        found = said.detections
        keep = wanted[found.image] & (_top(found.scores) >= UNSURE)
        boxes, scores, image = found.boxes[keep], found.scores[keep], found.image[keep]
    elif said.scores is None or said.boxes is None:
        return anchors.new_zeros((0, 4)), anchors.new_zeros((0, classes)), anchors.new_zeros((0,), dtype=torch.long)
    else:
        probabilities = said.scores.float().sigmoid()  # (B, C, A)
        image, anchor = ((_top(probabilities.transpose(1, 2)) >= UNSURE) & wanted[:, None]).nonzero(as_tuple=True)
        distances = expected_distances(said.boxes[image, :, anchor].float())
        boxes, scores = decode(distances, anchors[anchor], strides[anchor]), probabilities[image, :, anchor]
    columns = torch.arange(classes, device=scores.device) if said.classes is None else said.classes
    whole = scores.new_zeros((len(scores), classes))
    whole[:, columns] = scores
    return boxes.float(), whole.float(), image


def _top(scores: Tensor) -> Tensor:
    """The highest probability over the last dimension; 0 where there is no class."""
    return scores.amax(-1) if scores.shape[-1] else scores.new_zeros(scores.shape[:-1])


def weigh_unlabelled(
    assigned: Assigned, teacher: Predictions, batch: int, unlabelled: Tensor | None = None
) -> Assigned:
    """Let the teacher weigh the anchors of images that have no label.

    The detection loss gives such an image no target at all. Where the teacher is at least
    ``UNLABELLED_CONFIDENCE`` sure of a class that the student knows, the anchor counts that much. On an image of
    ``unlabelled=`` pseudo-boxes give their anchors a weight; there the higher of the two counts, so that objects that
    the teacher is too unsure of for a box are taught softly.

    Args:
        assigned: the detection loss's assignment.
        teacher: predictions with scores in the student's class space, or without scores.
        batch: number of images.
        unlabelled: ``(batch,)`` bool, images whose boxes come from the teacher; None: no image's do.
    """
    if teacher.scores is None:
        return assigned
    labelled = torch.zeros(batch, dtype=torch.bool, device=assigned.weight.device)
    labelled[assigned.gt_image] = True
    if unlabelled is not None:
        labelled &= ~unlabelled.to(labelled.device)
    if len(assigned.gt_image) and bool(labelled.all()):
        return assigned
    sure = teacher.scores.float().amax(1).sigmoid()  # (B, A)
    sure = torch.where(sure >= UNLABELLED_CONFIDENCE, sure, torch.zeros_like(sure))
    weight = torch.where(labelled[:, None], assigned.weight, torch.maximum(sure, assigned.weight))
    # Levels that are not taught count into the detection loss's normaliser and so into ours.
    total = assigned.weight.sum()
    elsewhere = torch.where(assigned.normalizer > 1, assigned.normalizer - total, torch.zeros_like(total))
    return replace(assigned, weight=weight, normalizer=(weight.sum() + elsewhere).clamp(min=1))
