"""Focal and global distillation: objects and background apart, and what the positions say to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import levels_of
from yolokd.predictions import Assigned, Pair, Predictions


def scale_mask(boxes: Tensor, image: Tensor, batch: int, size: tuple[int, int], stride: int) -> Tensor:
    """Spread a weight of 1 over the cells of each box.

    A cell that a box touches gets one over the number of those cells; where boxes overlap, the smallest of them wins.
    A box counts at least one cell, what lies outside the image is cut off, and a box that lies outside as a whole
    counts nothing.

    Args:
        boxes: ``(N, 4)`` (x1, y1, x2, y2) in pixels.
        image: ``(N,)`` index of each box's image, int64.
        batch: number of images B.
        size: rows H and columns W of the level.
        stride: pixels a cell.

    Returns:
        ``(B, H * W)``, 0 on background, float32.
    """
    height, width = size
    cells = boxes.float() / stride
    limit = cells.new_tensor([width, height])
    low = cells[:, :2].floor().clamp(min=0)
    high = torch.maximum(cells[:, 2:].ceil(), low + 1).minimum(limit)
    inside = ((cells[:, 2:] > 0) & (cells[:, :2] < limit)).all(1)
    column = torch.arange(width, device=boxes.device)  # (W,)
    row = torch.arange(height, device=boxes.device)  # (H,)
    across = (column >= low[:, :1]) & (column < high[:, :1])  # (N, W)
    down = (row >= low[:, 1:]) & (row < high[:, 1:])  # (N, H)
    weight = inside / (high - low).prod(1).clamp(min=1)  # (N,)
    spread = (down[:, :, None] & across[:, None]) * weight[:, None, None]  # (N, H, W)
    mask = spread.new_zeros(batch, height * width)
    return mask.scatter_reduce(0, image[:, None].expand(-1, height * width), spread.flatten(1), "amax")


def attention(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where a map is strong: softmax of its mean magnitude, over positions and over channels, 1 on average.

    Args:
        feature: ``(B, C, P)``.
        temperature: in the units of the features.

    Returns:
        ``(B, P)`` and ``(B, C)``.
    """
    magnitude, (_, width, cells) = feature.abs(), feature.shape
    # A sum over a number rather than a mean, whose way back would divide the whole map.
    positions = (magnitude.sum(1) / (width * temperature)).softmax(1) * cells
    channels = (magnitude.sum(2) / (cells * temperature)).softmax(1) * width
    return positions, channels


class Context(nn.Module):
    """A global context block (GCNet): what one image's positions together add to every one of them.

    A learnt softmax over positions pools the map to one vector, and a bottleneck of half the width turns it into the
    addition. Its last layer begins at 0, so the block begins as the identity.

    Args:
        width: channels of the level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.look = nn.Linear(width, 1, bias=False)  # the softmax would not see a bias
        self.transform = nn.Sequential(
            nn.Linear(width, half), nn.LayerNorm(half), nn.ReLU(), last := nn.Linear(half, width)
        )
        nn.init.kaiming_normal_(self.look.weight, nonlinearity="relu")
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """From ``(B, C, P)`` to the addition ``(B, C)``."""
        look = (self.look.weight @ feature).softmax(2)  # (B, 1, P)
        added: Tensor = self.transform((feature @ look.mT)[:, :, 0])
        return added


class FocalGlobalKD(nn.Module):
    """Match features on objects and on background apart, where the teacher looks, and their global relations.

    Four parts: the squared difference inside the ground-truth boxes, each box counting 1 whatever its size; the same
    on the background, counting 1 in all; the distance between the attention of student and teacher; and the squared
    difference after a context block on either side has added what the whole image says. The first two are
    weighted by the teacher's attention over positions and over channels. Without the split, differences on the
    background, which is most of an image, drown those on the objects.

    Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022,
    https://arxiv.org/abs/2111.11837. The options are the paper's weights beta, gamma and lambda over its weight alpha
    of the foreground: 0.5, 0.5 and 0.005 in the authors' settings for RetinaNet, GFL, FCOS and YOLOX.

    Departures: the gain stands for alpha, and the paper's sum over positions, channels and levels (mean over images) is
    divided by the teacher's channels over all levels, so that teachers of any width share a scale. The paper's loss
    is the gain alpha * sum_l D_l, which for its own detectors is: RetinaNet, alpha 1e-3 * 5 levels * 256 = 1.28;
    FCOS, 1.6e-3 * 1280 = 2.05 (temperature 0.8); YOLOX-l to -m, 2e-3 * 768 = 1.54. Under YOLO11-x (384, 768, 768)
    alpha 1e-3 is 1.92. As in the paper the attention of positions and the relation are sums over positions, so
    these two grow with the image size. A box takes the cells that it touches; the authors' code takes one row and
    one column more, and its first version took the transposed box. The adapter has no bias and is there when the
    widths are equal too.

    The teacher's context block trains as well, as in the paper; the teacher itself gets no gradient. An image
    without boxes is background everywhere, one that comes without labels too.

    Args:
        adapter: brings the student's levels to the teacher's widths.
        teacher_widths: channels of each teacher level.
        strides: pixels a cell of each level.
        temperature: of both attentions, in the units of the features; a smaller one looks at fewer positions.
        background: weight of the background's part, over the foreground's; at least 0, as the next two.
        attention: weight of the attention's part.
        relation: weight of the global relation's part.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level.
        assigned.gt_boxes: ``(N, 4)`` pixels; assigned.gt_image: ``(N,)``.
        return: ``()``, float32; 0 where adapted student and teacher agree and the context blocks are equal.

    Raises:
        ValueError: no features, levels of other sizes, or an option out of range.
    """

    def __init__(
        self,
        adapter: PyramidAdapter,
        teacher_widths: Sequence[int],
        strides: Sequence[int],
        temperature: float = 0.5,
        background: float = 0.5,
        attention: float = 0.5,
        relation: float = 0.005,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"fgd.temperature is {temperature}; it must be above 0")
        for name, value in (("background", background), ("attention", attention), ("relation", relation)):
            if not value >= 0:
                raise ValueError(f"fgd.{name} is {value}; it must be at least 0")
        self.adapter = adapter
        self.student_context = nn.ModuleList(Context(w) for w in teacher_widths)
        self.teacher_context = nn.ModuleList(Context(w) for w in teacher_widths)
        self.strides = tuple(strides)
        self.temperature = float(temperature)
        self.background, self.attention, self.relation = float(background), float(attention), float(relation)

    @classmethod
    def for_pair(
        cls,
        pair: Pair,
        *,
        temperature: float = 0.5,
        background: float = 0.5,
        attention: float = 0.5,
        relation: float = 0.005,
    ) -> FocalGlobalKD:
        """The loss of a pair, with a fresh adapter and fresh context blocks."""
        adapter = PyramidAdapter.for_pair(pair)
        widths, strides = pair.teacher.widths, pair.student.strides
        return cls(adapter, widths, strides, temperature, background, attention, relation)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        ours, theirs = levels_of("fgd", student, teacher)
        total, channels = ours[0].new_zeros(()), 0
        adapted = self.adapter(ours)
        contexts = zip(self.student_context, self.teacher_context, strict=True)
        for s, t, stride, context in zip(adapted, theirs, self.strides, contexts, strict=True):
            if s.shape != t.shape:
                raise ValueError(f"adapted student level {tuple(s.shape)} against teacher level {tuple(t.shape)}")
            batch, width, *size = t.shape
            objects = scale_mask(assigned.gt_boxes, assigned.gt_image, batch, (size[0], size[1]), stride)
            t = t.float().flatten(2)
            s = s.flatten(2)
            total = total + self._level(s, t, objects, context[0](s) - context[1](t)) / batch
            channels += width
        return total / channels

    def _level(self, student: Tensor, teacher: Tensor, objects: Tensor, added: Tensor) -> Tensor:
        """The four parts of a level, summed over images.

        Args:
            student: ``(B, C, P)``, adapted.
            teacher: ``(B, C, P)``.
            objects: ``(B, P)``, the scale mask.
            added: ``(B, C)``, what the student's context adds less what the teacher's does.
        """
        with torch.no_grad():
            t_positions, t_channels = attention(teacher, self.temperature)
            empty = (objects == 0).float()
            empty = empty / empty.sum(1, keepdim=True).clamp(min=1)
            focus = (objects + self.background * empty) * t_positions  # (B, P)
            weights = torch.stack((focus, torch.ones_like(focus)), 2)  # (B, P, 2)
        s_positions, s_channels = attention(student, self.temperature)
        apart = (t_positions - s_positions).abs().sum() + (t_channels - s_channels).abs().sum()
        difference = student - teacher
        focal, plain = ((difference * difference) @ weights).unbind(2)  # (B, C) each, summed over positions
        # sum_p (d + a)^2 without another full-size map: sum_p d^2 + 2 a sum_p d + P a^2, a being the same everywhere.
        related = plain + 2 * added * difference.sum(2) + student.shape[2] * added.square()
        return (t_channels * focal).sum() + self.attention * apart + self.relation * related.sum()
