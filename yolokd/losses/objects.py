"""What a network sees in each ground-truth box: vectors read off the pyramid, for the losses that compare objects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Points a side of a box: 16 points a box and level. Small boxes are oversampled, which only costs time; in a box of
# the whole image at 320 px they lie 10 cells apart on the finest level, 2.5 cells on the coarsest.
POINTS = 4


def line_up(image: Tensor) -> tuple[Tensor, int]:
    """Give each box a place among those of its image.

    Args:
        image: ``(N,)`` index of each box's image, in any order.

    Returns:
        ``(N,)`` place, 0 for the first box of an image, and the number of places that the fullest image needs.
    """
    place = (image[:, None] == image[None, :]).tril(-1).sum(1)
    return place, int(place.max()) + 1 if len(place) else 0


def align_objects(
    feats: Sequence[Tensor], boxes: Tensor, image: Tensor, strides: Sequence[int], points: int = POINTS
) -> list[Tensor]:
    """Read each box off each pyramid level: the mean of a grid of bilinear samples, as RoIAlign with one bin.

    It is written as a product of matrices, since bilinear sampling on a grid parallel to the axes is separable. On a
    GPU ``torchvision.ops.roi_align`` sums its gradients in no fixed order, and where deterministic algorithms are
    asked for, as Ultralytics does by default, it compiles a replacement at run time. The values are the same.

    Args:
        feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels of the network input, inside the image.
        image: ``(N,)`` index of each box's image in the batch, in any order, int64.
        strides: pixels a cell of each level.
        points: samples a side of a box.

    Returns:
        a ``(N, C_l)`` tensor a level, float32, in the order of ``boxes``, joined to the graph of ``feats`` also where
        N is 0.
    """
    place, places = line_up(image)  # one product a level serves the whole batch: B lists of boxes, filled up with zeros
    found = []
    for feat, stride in zip(feats, strides, strict=True):
        batch, _, height, width = feat.shape
        across = _tents(boxes[:, 0::2].float() / stride, width, points)  # (N, W)
        down = _tents(boxes[:, 1::2].float() / stride, height, points)  # (N, H)
        weight = across.new_zeros(batch, places, height * width)
        weight[image, place] = (down[:, :, None] * across[:, None, :]).flatten(1)
        aligned = weight @ feat.float().flatten(2).transpose(1, 2)  # (B, places, C)
        found.append(aligned[image, place])
    return found


def _tents(span: Tensor, cells: int, points: int) -> Tensor:
    """How much each cell of an axis counts in a span of it: ``(N, 2)`` ends in cells to ``(N, cells)``, rows sum to 1.

    Cell i has its centre at i + 1/2. A sample beyond the outermost centres takes the outermost cell.
    """
    steps = (torch.arange(points, device=span.device) + 0.5) / points
    samples = span[:, :1] + (span[:, 1:] - span[:, :1]) * steps - 0.5  # (N, points), in units of cell centres
    distance = samples.clamp(0, cells - 1)[:, :, None] - torch.arange(cells, device=span.device)  # (N, points, cells)
    return (1 - distance.abs()).clamp(min=0).mean(1)


def even_steps(boxes: Tensor, image: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """At most ``limit`` objects of a batch, at even steps through its list: no random number decides.

    Args:
        boxes: ``(N, 4)``.
        image: ``(N,)``.
        limit: at least 1.
    """
    total = len(boxes)
    count = min(total, limit)
    chosen = torch.arange(count, device=boxes.device) * total // max(count, 1)
    return boxes[chosen], image[chosen]


def describe_objects(feats: Sequence[Tensor], boxes: Tensor, image: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """What each level sees in each box, against what it sees on average.

    Each channel's mean over batch and positions is taken off: activations after SiLU have one sign mostly, and that
    common part alone makes any two objects look alike (mean cosine of two objects of Aquarium on the finest level of
    YOLO11-n .90 with it, .30 without). Then the level is divided by one number, the root mean square over all its
    positions and channels: levels are as loud as one another after it, and the size of a network's activations does
    not matter. How strongly an object is seen against others remains. A level of a single value has nothing to say
    and gives 0.

    Args:
        feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels of the network input, inside the image.
        image: ``(N,)`` index of each box's image in the batch, int64.
        strides: pixels a cell of each level.

    Returns:
        a ``(N, C_l)`` tensor a level, float32, each component of order 1; joined to the graph also where N is 0.
    """
    described = []
    for vector, feat in zip(align_objects(feats, boxes, image, strides), feats, strict=True):
        maps = feat.float().flatten(2)  # (B, C_l, H_l * W_l)
        mean = maps.mean(2).mean(0)  # (C_l,)
        # Mean square and squared mean: torch.var_mean takes a hundred times as long on a CPU.
        square = torch.linalg.vector_norm(maps, dim=2).square().mean() / maps.shape[2]
        offset = mean.square().mean()
        # The floor is relative: what rounding leaves of a constant level must not be blown up.
        variance = (square - offset).clamp(min=0) + 1e-5 * offset + 1e-8
        described.append((vector - mean) / variance.sqrt())
    return described


def embed_objects(feats: Sequence[Tensor], boxes: Tensor, image: Tensor, strides: Sequence[int]) -> Tensor:
    """One vector an object: what all levels see in its box, one after the other.

    All levels, not only the one that suits the box's size: the others see its parts or its surroundings, and no
    threshold on the size makes an object's vector jump. `describe_objects` makes the levels comparable; here each is
    divided by the root of its width too, so that a wide level has no more to say than a narrow one: over all positions
    of a batch the mean square length of a level is 1.

    Args:
        feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels of the network input, inside the image.
        image: ``(N,)`` index of each box's image in the batch, int64.
        strides: pixels a cell of each level.

    Returns:
        ``(N, sum of C_l)``, float32; ``(0, sum of C_l)`` joined to the graph where there is no object.
    """
    return join_levels(describe_objects(feats, boxes, image, strides))


def join_levels(described: Sequence[Tensor]) -> Tensor:
    """The vectors of `describe_objects`, ``(N, C_l)`` a level, as one of ``(N, sum of C_l)``: see `embed_objects`."""
    return torch.cat([v / math.sqrt(v.shape[1]) for v in described], 1)
