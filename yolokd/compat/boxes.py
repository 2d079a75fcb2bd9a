"""Box geometry, by Ultralytics' own functions, so that our boxes are decoded exactly as the detection loss does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import bbox2dist, dist2bbox, make_anchors


def expected_distances(boxes: Tensor) -> Tensor:
    """Turn raw edge logits into distances from the anchor.

    Args:
        boxes: ``(K, 4 * reg_max)`` edge logits of K anchors; with ``reg_max`` 1 they are the distances themselves.

    Returns:
        ``(K, 4)`` expected (left, top, right, bottom) distances in strides.
    """
    reg_max = boxes.shape[-1] // 4
    if reg_max == 1:
        return boxes
    bins = torch.arange(reg_max, dtype=boxes.dtype, device=boxes.device)
    with torch.autocast(boxes.device.type, enabled=False):  # its products would be exact to a pixel or three only
        return boxes.view(*boxes.shape[:-1], 4, reg_max).softmax(-1) @ bins


def decode(distances: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
    """Turn distances into boxes.

    Args:
        distances: ``(..., K, 4)`` (left, top, right, bottom) in strides.
        anchors: ``(K, 2)`` (x, y) in pixels.
        strides: ``(K,)`` pixels.

    Returns:
        ``(..., K, 4)`` (x1, y1, x2, y2) in pixels.
    """
    boxes: Tensor = dist2bbox(distances * strides[:, None], anchors, xywh=False)
    return boxes


def encode(boxes: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
    """The inverse of ``decode``: ``(K, 4)`` boxes in pixels to ``(K, 4)`` distances in strides."""
    distances: Tensor = bbox2dist(anchors, boxes) / strides[:, None]
    return distances


def iou(a: Tensor, b: Tensor, *, generalized: bool = False) -> Tensor:
    """Overlap of the boxes of two lists, one by one.

    Args:
        a: ``(..., 4)`` (x1, y1, x2, y2).
        b: the same shape, or one that broadcasts against it.
        generalized: GIoU, which falls below 0 as the two move apart.

    Returns:
        ``(...)`` overlaps in [0, 1], generalized ones in [-1, 1]. Equal boxes of at least a pixel have 1 but for
        rounding; smaller ones less, since 1e-7 is added to heights and areas, down to 0 for boxes without area.
    """
    overlap: Tensor = bbox_iou(a, b, xywh=False, GIoU=generalized)
    return overlap.squeeze(-1)


def bins_of(distances: Tensor, reg_max: int) -> Tensor:
    """Edge logits whose expected distance is the given one: the inverse of `expected_distances`.

    The two bins beside the distance hold all of the mass, as in the target of Ultralytics' own DFL loss.

    Args:
        distances: ``(..., 4)`` (left, top, right, bottom) in strides; clamped to what the bins can say.
        reg_max: bins an edge; 1 gives the distances themselves.

    Returns:
        ``(..., 4 * reg_max)`` finite logits; a bin without mass has a probability of about 1e-8.
    """
    if reg_max == 1:
        return distances
    distances = distances.clamp(0, reg_max - 1)
    bins = torch.arange(reg_max, dtype=distances.dtype, device=distances.device)
    mass = (1 - (distances[..., None] - bins).abs()).clamp(min=0)
    return mass.clamp(min=1e-8).log().flatten(-2)


def anchor_points(feats: tuple[Tensor, ...], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The grid of a pyramid: ``(A, 2)`` anchor points and ``(A,)`` strides, both in pixels."""
    points, per_anchor = make_anchors(list(feats), strides, 0.5)
    return points * per_anchor, per_anchor.squeeze(-1)


def grid(imgsz: int, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Anchor points ``(A, 2)`` and their strides ``(A,)`` in pixels of a square image."""
    levels = tuple(torch.empty(1, 1, imgsz // stride, imgsz // stride) for stride in strides)
    return anchor_points(levels, tuple(strides))
