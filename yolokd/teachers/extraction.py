"""What a teacher detects: from raw predictions to boxes after NMS."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms  # type: ignore[import-untyped]

from yolokd.compat.boxes import decode, expected_distances, grid
from yolokd.predictions import HeadInfo, Predictions
from yolokd.teachers.cache_file import Found


def extract(
    said: Predictions, info: HeadInfo, imgsz: int, images: int, *, conf: float, iou: float, max_det: int
) -> list[Found]:
    """The detections among a teacher's raw predictions, as Ultralytics finds them: the surest class of each anchor.

    Boxes of different classes do not suppress each other. Of two that are equally sure the one of the lower anchor
    counts as surer, so the result does not depend on how a sort breaks ties.

    Args:
        said: predictions on a grid (``scores`` and ``boxes``), or ``detections`` in pixels of the square.
        info: the teacher's head.
        imgsz: side of the square, pixels.
        images: how many there are, B.
        conf: see `Recipe`.
        iou: see `Recipe`.
        max_det: see `Recipe`.

    Returns:
        what was found in each image, with bins and anchors where the head has bins.

    Raises:
        ValueError: neither scores with boxes nor detections, or detections of a head with bins.
    """
    if said.detections is not None:
        if info.reg_max > 1:
            raise ValueError(f"detections without a grid, but reg_max is {info.reg_max}")
        given = said.detections
        boxes, scores = given.boxes.float().cpu(), given.scores.float().cpu()
        image, sure = given.image.cpu(), scores.amax(1) > conf
        picks = [((image == i) & sure).nonzero().squeeze(1) for i in range(images)]
        return [_suppress(boxes[pick], scores[pick], iou, max_det) for pick in picks]
    if said.scores is None or said.boxes is None:
        raise ValueError("a teacher's cache needs scores and boxes, or detections")
    points, strides = grid(imgsz, info.strides)
    sure = said.scores.float().amax(1).sigmoid() > conf  # (B, A)
    found = []
    for i in range(images):
        anchors = sure[i].nonzero().squeeze(1)
        logits, bins = (x[i][:, anchors].T.float().cpu() for x in (said.scores, said.boxes))
        anchors = anchors.cpu()
        boxes = decode(expected_distances(bins), points[anchors], strides[anchors])
        found.append(_suppress(boxes, logits.sigmoid(), iou, max_det, (bins, anchors) if info.reg_max > 1 else None))
    return found


def _suppress(
    boxes: Tensor, scores: Tensor, iou: float, max_det: int, more: tuple[Tensor, Tensor] | None = None
) -> Found:
    """Class-aware NMS, the surest first; ``more``: bins and anchors."""
    probabilities = scores.numpy()
    order = torch.from_numpy(np.argsort(-probabilities.max(1), kind="stable"))
    labels = torch.from_numpy(probabilities.argmax(1))  # of equal classes, the first
    kept = batched_nms(boxes[order], scores.amax(1)[order], labels[order], iou)
    pick = order[kept.sort().values][:max_det]
    bins, anchors = more or (None, None)
    return Found(
        boxes[pick].numpy(),
        scores[pick].numpy(),
        None if bins is None else bins[pick].numpy(),
        None if anchors is None else anchors[pick].numpy(),
    )
