"""Losses on how images, or objects, stand to one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.losses.features import levels_of
from yolokd.losses.objects import embed_objects, even_steps
from yolokd.predictions import Assigned, Pair, Predictions

# Objects whose vectors are closer than this are the same object: their direction from one another is rounding. The
# vectors have a length of order 1.
SAME = 1e-4


class SimilarityPreserving(nn.Module):
    """Let two images look alike to the student where they look alike to the teacher.

    Each image is compared with all others of the batch by the inner product of its features; the student's table of
    similarities is drawn to the teacher's. Nothing is compared channel by channel or position by position, so that
    widths and sizes may differ and there is no adapter.

    The value depends on the batch: each row of the table has length 1 whatever its B entries, so the mean over the
    table falls as 1/B, and a batch of 1 gives 0. With several GPUs each rank compares its own images.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1907.09682.
    Departure: the levels are averaged instead of summed, so that the gain does not depend on their number. The paper's
    weight of 3000 belongs to one layer and a batch of 128, that is to 3000 / 128 = 23 a row; a batch of B needs a gain
    of 23 * B for the same pull.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, h_l, w_l)`` tensor a level.
        return: ``()``, dimensionless, float32, at most 4 / B; 0 for a batch of 1.

    Raises:
        ValueError: no features, another number of levels, or another number of images.
    """

    @classmethod
    def for_pair(cls, pair: Pair) -> SimilarityPreserving:
        """The loss of a pair; it has nothing that depends on it."""
        return cls()

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        ours, theirs = levels_of("sp", student, teacher)
        if len(ours[0]) != len(theirs[0]):
            raise ValueError(f"{len(ours[0])} student images against {len(theirs[0])} teacher images")
        levels = [F.mse_loss(_similarity(s), _similarity(t)) for s, t in zip(ours, theirs, strict=True)]
        return torch.stack(levels).mean()


def _similarity(feature: Tensor) -> Tensor:
    """The table of similarities between images, rows of length 1: ``(B, C, H, W)`` to ``(B, B)``."""
    rows = feature.float().flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


class RelationalKD(nn.Module):
    """Match how far objects are from one another, and at what angles, in what the networks make of them.

    An object is the vector that a network's pyramid holds in its ground-truth box (see `embed_objects`). Distances
    between two objects, in units of the mean distance, and angles between three must be the same to student and
    teacher. Both are unchanged by rotation, shift and scale of a network's vectors, whose widths may differ: there is
    no adapter.

    Objects of all images of the batch are compared with one another: the value depends on the batch. With several
    GPUs each rank compares its own objects.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068. Departures:
    objects instead of images; means over distinct pairs and triplets instead of sums (the authors' code has means
    over all, the same object twice included); at most ``limit`` objects a batch, at even steps through the batch's
    list, since there are N^3 angles; two objects whose vectors coincide have no direction and count as cosine 0. The
    paper's weights for distance and angle are 1 and 2, and 25 and 50 beside a cross entropy, which would be a gain
    of 25. On a detector's pyramid that is far more than the other losses have; the table's gain is smaller.

    Args:
        strides: pixels a cell of each level, of student and teacher.
        distance: weight of the distances.
        angle: weight of the angles.
        limit: the most objects of a batch that are compared.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, h_l, w_l)`` tensor a level.
        assigned.gt_boxes: ``(N, 4)`` pixels; assigned.gt_image: ``(N,)``.
        return: ``()``, dimensionless, float32; the distances need two objects and the angles three, 0 without.

    Raises:
        ValueError: no features, a negative weight, two weights of 0, or a limit below 3.
    """

    def __init__(
        self,
        strides: tuple[Sequence[int], Sequence[int]],
        distance: float = 1.0,
        angle: float = 2.0,
        limit: int = 32,
    ) -> None:
        super().__init__()
        for name, value in (("distance", distance), ("angle", angle)):
            if not value >= 0:
                raise ValueError(f"rkd.{name} is {value}; it must be 0 or more")
        if distance == angle == 0:
            raise ValueError("rkd.angle is 0; it must be above 0 where rkd.distance is 0 too")
        if limit < 3:
            raise ValueError(f"rkd.limit is {limit}; it must be at least 3, an angle needs three objects")
        self.strides = strides
        self.distance = float(distance)
        self.angle = float(angle)
        self.limit = int(limit)

    @classmethod
    def for_pair(cls, pair: Pair, *, distance: float = 1.0, angle: float = 2.0, limit: int = 32) -> RelationalKD:
        """The loss of a pair."""
        return cls((pair.student.strides, pair.teacher.strides), distance, angle, limit)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        ours, theirs = levels_of("rkd", student, teacher)
        boxes, image = even_steps(assigned.gt_boxes, assigned.gt_image, self.limit)
        count = len(boxes)
        s = relations(embed_objects(ours, boxes, image, self.strides[0]))
        t = relations(embed_objects(theirs, boxes, image, self.strides[1]))
        distances = F.smooth_l1_loss(s[0], t[0], reduction="sum") / max(count * (count - 1), 1)
        angles = F.smooth_l1_loss(s[1], t[1], reduction="sum") / max(count * (count - 1) * (count - 2), 1)
        return self.distance * distances + self.angle * angles


def relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between two objects and angles between three.

    Args:
        vectors: ``(N, C)``, one an object.

    Returns:
        ``(N, N)`` distances in units of their mean over distinct objects, and ``(N, N, N)`` cosines of the angle at
        object i between objects j and k, 0 where two of the three are the same.
    """
    count = len(vectors)
    difference = vectors[None, :, :] - vectors[:, None, :]  # (N, N, C), from i to j
    length = torch.linalg.vector_norm(difference, dim=2)  # (N, N); its gradient at 0 is 0
    mean = length.sum() / max(count * (count - 1), 1)
    direction = difference / length.clamp(min=SAME)[:, :, None]
    # From i to i there is no way, which leaves j = k to be taken out.
    distinct = 1 - torch.eye(count, device=vectors.device)
    return length / mean.clamp(min=SAME), direction @ direction.transpose(1, 2) * distinct
