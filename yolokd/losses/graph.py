"""The objects of an image as a graph: what each is, and how alike any two are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import levels_of
from yolokd.losses.objects import describe_objects, join_levels, line_up
from yolokd.predictions import Assigned, Pair, Predictions

# A mirrored box of which more than this share lies in one object is no background.
OVERLAP = 0.3


class GraphKD(nn.Module):
    """Match what each object of an image is to the networks, and how alike any two of them are.

    The nodes of an image's graph are the vectors that the pyramid holds in its ground-truth boxes, and in some boxes
    of background; the edges are the cosines between them. Nodes are matched through a 1x1 adapter a level, edges as
    they are. A few nodes weigh as much as a whole map of positions would, most of which are background.

    Sources: Chen et al., "Deep Structured Instance Graph for Distilling Object Detectors", ICCV 2021,
    https://arxiv.org/abs/2109.12862; Dai et al., "General Instance Distillation for Object Detection", CVPR 2021,
    https://arxiv.org/abs/2103.02340 (relations between instances). Departures: foreground nodes are the ground-truth
    boxes, not proposals, which a one-stage head has none of; background nodes are the ground-truth boxes mirrored left
    to right, top to bottom and both, where they meet no object, instead of the proposals that the teacher takes for
    objects: of the objects' own sizes, inside the image, and without random numbers; all background nodes, not only
    the mined ones, have edges; vectors are the mean over a box of the centred and scaled level (see
    `describe_objects`) on every level instead of 7 x 7 cells of one, so that the size of the teacher's activations
    does not matter; nodes go through an adapter, since widths differ, and edges do not, so that the adapter cannot
    learn them in the student's place; images are averaged, not summed; at most ``limit`` objects of an image count.
    The authors' weights of .5, .5 and 1 (2 for two-stage detectors), the last of half a squared error, are 1 : 1 : 1
    here. As theirs, the background's is multiplied by the number of objects to that of background nodes, here at most
    1, and there by a further factor that they tune for each pair.

    Args:
        adapter: brings the student's vectors to the teacher's widths, level by level.
        strides: pixels a cell of each level, of student and teacher.
        nodes: weight of the objects.
        background: weight of the background nodes.
        edges: weight of the edges.
        limit: the most objects of an image, taken at even steps through its list.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, h_l, w_l)`` tensor a level.
        assigned.gt_boxes: ``(N, 4)`` pixels; assigned.gt_image: ``(N,)``.
        return: ``()``, float32, squared standard deviations of the teacher's level and squared cosines, mean over
            images; an image without objects counts 0.

    Raises:
        ValueError: no features, levels of other widths, a negative weight, or a limit below 1.
    """

    def __init__(
        self,
        adapter: PyramidAdapter,
        strides: tuple[Sequence[int], Sequence[int]],
        nodes: float = 1.0,
        background: float = 1.0,
        edges: float = 1.0,
        limit: int = 16,
    ) -> None:
        super().__init__()
        for name, value in (("nodes", nodes), ("background", background), ("edges", edges)):
            if not value >= 0:
                raise ValueError(f"graph.{name} is {value}; it must be 0 or more")
        if nodes == background == edges == 0:
            raise ValueError("graph.nodes is 0; it must be above 0 where graph.background and graph.edges are 0 too")
        if limit < 1:
            raise ValueError(f"graph.limit is {limit}; it must be at least 1")
        self.adapter = adapter
        self.strides = strides
        self.nodes = float(nodes)
        self.background = float(background)
        self.edges = float(edges)
        self.limit = int(limit)

    @classmethod
    def for_pair(
        cls, pair: Pair, *, nodes: float = 1.0, background: float = 1.0, edges: float = 1.0, limit: int = 16
    ) -> GraphKD:
        """The loss of a pair, with a fresh adapter."""
        strides = (pair.student.strides, pair.teacher.strides)
        return cls(PyramidAdapter.for_pair(pair), strides, nodes, background, edges, limit)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        ours, theirs = levels_of("graph", student, teacher)
        batch, _, height, width = ours[0].shape
        size = (width * self.strides[0][0], height * self.strides[0][0])
        boxes, image = thin_out(assigned.gt_boxes, assigned.gt_image, self.limit)
        others, their_image = mirrored(boxes, image, size)
        objects = len(boxes)
        boxes, image = torch.cat([boxes, others]), torch.cat([image, their_image])
        s = describe_objects(ours, boxes, image, self.strides[0])
        t = describe_objects(theirs, boxes, image, self.strides[1])
        # A node is the same whether the map is adapted and then read off, or read off and then adapted.
        adapted = [v.flatten(1) for v in self.adapter([v[:, :, None, None] for v in s])]
        difference = self._difference(adapted, t)
        node = _image_mean(difference[:objects], image[:objects], batch)
        ground = _image_mean(difference[objects:], image[objects:], batch)
        counts = image[:objects].bincount(minlength=batch), image[objects:].bincount(minlength=batch)
        ratio = (counts[0] / counts[1].clamp(min=1)).clamp(max=1)
        edge = edge_difference(join_levels(s), join_levels(t), image, batch)
        return (self.nodes * node + self.background * ratio * ground + self.edges * edge).mean()

    @staticmethod
    def _difference(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean squared difference of each node, levels averaged: ``(M, D_l)`` a level to ``(M,)``."""
        levels = []
        for s, t in zip(student, teacher, strict=True):
            if s.shape != t.shape:
                raise ValueError(f"adapted student nodes {tuple(s.shape)} against teacher nodes {tuple(t.shape)}")
            levels.append((s - t).square().mean(1))
        return torch.stack(levels).mean(0)


def _image_mean(values: Tensor, image: Tensor, batch: int) -> Tensor:
    """Mean of the ``(M,)`` values of each image, 0 where it has none: ``(B,)``."""
    total = values.new_zeros(batch).index_add(0, image, values)
    return total / image.bincount(minlength=batch).clamp(min=1)


def thin_out(boxes: Tensor, image: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Keep at most ``limit`` boxes of each image, at even steps through its list; shapes as `line_up` takes them."""
    place, places = line_up(image)
    if places <= limit:
        return boxes, image
    count = image.bincount()[image]
    keep = (count <= limit) | (place * limit % count < limit)  # the steps at which place * limit / count passes a whole
    return boxes[keep], image[keep]


def mirrored(boxes: Tensor, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Background of the objects' own sizes: their boxes mirrored in the image, where they meet no object.

    Args:
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels.
        image: ``(N,)`` index of each box's image.
        size: width and height of the images in pixels.

    Returns:
        ``(M, 4)`` boxes and ``(M,)`` indices of their images, M at most 3 * N.
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    left, up = (size[0] - x2, size[0] - x1), (size[1] - y2, size[1] - y1)
    flips = ((*left, y1, y2), (x1, x2, *up), (*left, *up))
    found = torch.cat([torch.stack([a, c, b, d], 1) for a, b, c, d in flips])  # (3 N, 4)
    their_image = image.repeat(3)
    low = torch.maximum(found[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(found[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)  # (3 N, N) square pixels
    area = (found[:, 2:] - found[:, :2]).prod(1)[:, None]
    taken = (common > OVERLAP * area) & (their_image[:, None] == image[None, :])
    free = ~taken.any(1)
    return found[free], their_image[free]


def edge_difference(student: Tensor, teacher: Tensor, image: Tensor, batch: int) -> Tensor:
    """How differently two networks see the likeness of the nodes of an image.

    Args:
        student: ``(M, C)`` nodes.
        teacher: ``(M, D)`` the same nodes.
        image: ``(M,)`` index of each node's image.
        batch: number of images.

    Returns:
        ``(B,)`` mean squared difference of the cosines of two distinct nodes of an image, 0 with fewer than two.
    """
    place, places = line_up(image)
    cosines = []
    for vectors in (student, teacher):
        table = vectors.new_zeros(batch, places, vectors.shape[1])
        # The vectors have a length of order 1; the floor keeps the gradient of a vector of zeros in bounds.
        table = table.index_put((image, place), F.normalize(vectors, dim=1, eps=1e-3))
        cosines.append(table @ table.transpose(1, 2))  # (B, places, places), 0 where there is no node
    distinct = 1 - torch.eye(places, device=image.device)
    total = ((cosines[0] - cosines[1]).square() * distinct).sum((1, 2))
    count = image.bincount(minlength=batch)
    return total / (count * (count - 1)).clamp(min=1)
