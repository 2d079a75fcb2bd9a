"""Small tensors that the tests of losses, matching and criterion share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from yolokd.classes import ClassMap
from yolokd.compat.boxes import anchor_points
from yolokd.levels import match_levels
from yolokd.predictions import Assigned, HeadInfo, Hidden, Pair, Predictions
from yolokd.teachers.live import Teacher
from yolokd.teachers.panel import Panel
from yolokd.teachers.view import View

WIDTHS = (4, 6)
SIZES = ((4, 4), (2, 2))
STRIDES = (8, 16)
ANCHORS = sum(h * w for h, w in SIZES)


def head(classes: int = 2, widths: tuple[int, ...] = WIDTHS, reg_max: int = 4, end2end: bool = False) -> HeadInfo:
    return HeadInfo({i: f"c{i}" for i in range(classes)}, STRIDES, widths, reg_max, end2end)


def pair(**teacher: object) -> Pair:
    return Pair(head(), head(**teacher))  # type: ignore[arg-type]


def predictions(
    batch: int = 2, classes: int = 2, widths: tuple[int, ...] = WIDTHS, reg_max: int = 4, seed: int = 0
) -> Predictions:
    g = torch.Generator().manual_seed(seed)
    return Predictions(
        torch.randn(batch, classes, ANCHORS, generator=g),
        torch.randn(batch, 4 * reg_max, ANCHORS, generator=g),
        tuple(torch.randn(batch, c, *s, generator=g) for c, s in zip(widths, SIZES, strict=True)),
    )


def panel(teacher: Teacher, student: HeadInfo, class_map: ClassMap | None = None, ratio: float = 1.0) -> Panel:
    """One teacher, ready to be asked."""
    classes = class_map or ClassMap.by_name(teacher.info.names, student.names)
    return Panel([View(teacher, student, classes, match_levels(student, teacher.info, ratio))])


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    points = [
        torch.tensor([((x + 0.5) * s, (y + 0.5) * s) for y in range(h) for x in range(w)])
        for (h, w), s in zip(SIZES, STRIDES, strict=True)
    ]
    strides = [torch.full((h * w,), float(s)) for (h, w), s in zip(SIZES, STRIDES, strict=True)]
    return torch.cat(points), torch.cat(strides)


def assignment(batch: int = 2, classes: int = 2, foreground: tuple[int, ...] = (5, 6, 17)) -> Assigned:
    """One 16 x 16 px object of class 1 at (8, 8) in every image, given to the anchors in ``foreground``."""
    anchors, strides = grid()
    box = torch.tensor([8.0, 8.0, 24.0, 24.0])
    mask = torch.zeros(batch, ANCHORS, dtype=torch.bool)
    mask[:, list(foreground)] = True
    scores = torch.zeros(batch, ANCHORS, classes)
    scores[..., classes - 1] = mask * 0.8
    some = bool(foreground)
    return Assigned(
        labels=torch.full((batch, ANCHORS), classes - 1),
        boxes=box.expand(batch, ANCHORS, 4).clone(),
        scores=scores,
        foreground=mask,
        gt_index=torch.zeros(batch, ANCHORS, dtype=torch.long),
        gt_boxes=box.expand(batch if some else 0, 4),
        gt_labels=torch.full((batch if some else 0,), classes - 1),
        gt_image=torch.arange(batch if some else 0),
        anchors=anchors,
        strides=strides,
        weight=scores.sum(-1),
        normalizer=scores.sum().clamp(min=1),
    )


@dataclass(frozen=True)
class Scene:
    """Two heads, all that both can say about one batch, and what the detection loss assigned."""

    pair: Pair
    student: Predictions
    teacher: Predictions
    assigned: Assigned

    def leaves(self) -> Scene:
        """The same with every tensor of student and teacher a leaf that asks for a gradient."""
        return replace(self, student=leaves(self.student), teacher=leaves(self.teacher))

    def twice(self) -> Scene:
        """The batch repeated; the teacher's head answers for any batch."""
        a, batch = self.assigned, len(self.assigned.weight)
        other = {"anchors", "strides", "normalizer", "seen"}
        whole = {f.name: getattr(a, f.name) for f in fields(a) if f.name not in other}
        both = {name: torch.cat([value, value]) for name, value in whole.items()}
        both["gt_image"][len(a.gt_image) :] += batch
        both["normalizer"] = both["weight"].sum().clamp(min=1)
        student, teacher = (each(p, lambda x: torch.cat([x, x])) for p in (self.student, self.teacher))
        return Scene(self.pair, student, teacher, replace(a, **both))


FIELDS = ("scores", "boxes", "feats", "hidden")


def each(p: Predictions, change: Callable[[Tensor], Tensor], only: str = "") -> Predictions:
    """The predictions with every tensor changed, or those of one field."""
    chosen = [name for name in FIELDS if getattr(p, name) is not None and only in {"", name}]
    return replace(p, **{name: _map(change, getattr(p, name)) for name in chosen})


def tensors(p: Predictions) -> dict[str, list[Tensor]]:
    """The tensors of each field in one list."""

    def flat(value: Any) -> list[Tensor]:
        return [value] if isinstance(value, Tensor) else [x for part in value or () for x in flat(part)]

    return {name: flat(getattr(p, name)) for name in FIELDS}


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    return change(value) if isinstance(value, Tensor) else tuple(_map(change, v) for v in value)


def leaves(p: Predictions) -> Predictions:
    return each(p, lambda x: x.detach().clone().requires_grad_())


def scene(
    objects: tuple[int, ...] = (3, 2),
    *,
    classes: int = 2,
    size: tuple[int, int] = (4, 4),
    levels: int = 2,
    stride: int = 8,
    reg_max: int = 4,
    foreground: bool = True,
    alike: bool = False,
    seed: int = 0,
) -> Scene:
    """A scene for any loss; the same seed and image size have the same objects.

    Args:
        objects: ground-truth boxes of each image.
        classes: of both heads.
        size: rows and columns of the finest level; each further level has half, rounded up.
        levels: of both pyramids.
        stride: pixels a cell of the finest level.
        reg_max: bins of both heads.
        foreground: the detection loss gives each object to its two nearest anchors; if not, to none.
        alike: the student has the teacher's widths and says what the teacher says.
        seed: of everything.
    """
    g = torch.Generator().manual_seed(seed)
    strides = tuple(stride * 2**i for i in range(levels))
    sizes = [(math.ceil(size[0] / 2**i), math.ceil(size[1] / 2**i)) for i in range(levels)]
    widths = {"student": (3, 4, 5), "teacher": (5, 6, 7)}  # of pyramid and box branch; the class branch has 2 more
    if alike:
        widths["student"] = widths["teacher"]
    infos, feats, hidden = {}, {}, {}
    for role, each_level in widths.items():
        w, more = each_level[:levels], tuple(c + 2 for c in each_level[:levels])
        infos[role] = HeadInfo({i: f"c{i}" for i in range(classes)}, strides, w, reg_max, False, ((w, more),) * 2)
        feats[role], hidden[role], hidden[role + " cls"] = (
            tuple(torch.randn(len(objects), c, *s, generator=g) for c, s in zip(ws, sizes, strict=True))
            for ws in (w, w, more)
        )
    door = _door(infos["teacher"], reg_max, classes, seed)
    inside = hidden["teacher"], hidden["teacher cls"]
    teacher = replace(door(inside), feats=feats["teacher"], reenter=door)
    anchors = sum(h * w for h, w in sizes)
    # The student leans to the last bin: its boxes are far too large, so that the teacher's are the better ones.
    lean = torch.linspace(0, 4, reg_max).repeat(4)[:, None]
    student = Predictions(
        torch.randn(len(objects), classes, anchors, generator=g),
        torch.randn(len(objects), 4 * reg_max, anchors, generator=g) + lean,
        feats["student"],
        hidden=(hidden["student"], hidden["student cls"]),
    )
    if alike:
        student = Predictions(teacher.scores, teacher.boxes, teacher.feats, hidden=inside)
    pixels = torch.tensor((size[1] * stride, size[0] * stride))
    assigned = _assign(objects, classes, sizes, strides, pixels, foreground, seed)
    return Scene(Pair(infos["student"], infos["teacher"]), student, teacher, assigned)


def _door(info: HeadInfo, reg_max: int, classes: int, seed: int) -> Callable[[Hidden], Predictions]:
    """A teacher's head of one fixed 1x1 convolution a branch and level."""
    g = torch.Generator().manual_seed(seed + 1)
    kernels = [
        [torch.randn(out, w, generator=g) / math.sqrt(w) for w in ws]
        for out, ws in zip((4 * reg_max, classes), info.hidden[0], strict=True)
    ]

    def enter(hidden: Hidden) -> Predictions:
        boxes, scores = (
            torch.cat([(k @ f.flatten(2)) for k, f in zip(ks, fs, strict=True)], 2)
            for ks, fs in zip(kernels, hidden, strict=True)
        )
        return Predictions(scores, boxes, None)

    return enter


def _assign(
    objects: tuple[int, ...],
    classes: int,
    sizes: list[tuple[int, int]],
    strides: tuple[int, ...],
    pixels: Tensor,
    foreground: bool,
    seed: int,
) -> Assigned:
    g = torch.Generator().manual_seed(seed + 2)
    batch, number = len(objects), sum(objects)
    ends = (torch.rand(number, 2, 2, generator=g) * pixels).sort(1).values  # two corners of each box
    boxes = torch.cat([ends[:, 0], torch.maximum(ends[:, 1], ends[:, 0] + 2).minimum(pixels)], 1)
    labels = torch.randint(classes, (number,), generator=g)
    image = torch.arange(batch).repeat_interleave(torch.tensor(objects))
    points, per_anchor = anchor_points(tuple(torch.zeros(1, 1, *s) for s in sizes), strides)
    owner = torch.zeros(batch, len(points), dtype=torch.long)
    mask = torch.zeros(batch, len(points), dtype=torch.bool)
    for i in range(number if foreground else 0):
        near = ((boxes[i, :2] + boxes[i, 2:]) / 2 - points).abs().sum(1).argsort(stable=True)[:2]
        owner[image[i], near], mask[image[i], near] = i, True
    label = labels[owner] if number else owner
    scores = F.one_hot(label, classes) * mask[..., None] * 0.8
    first = torch.tensor([0, *objects]).cumsum(0)[:-1, None]
    return Assigned(
        labels=label,
        boxes=boxes[owner] if number else torch.zeros(batch, len(points), 4),
        scores=scores,
        foreground=mask,
        gt_index=(owner - first).clamp(min=0),
        gt_boxes=boxes,
        gt_labels=labels,
        gt_image=image,
        anchors=points,
        strides=per_anchor,
        weight=scores.sum(-1),
        normalizer=scores.sum().clamp(min=1),
    )
