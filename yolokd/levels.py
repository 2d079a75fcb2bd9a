"""Which pyramid levels of student and teacher belong together, and a teacher's answers on the student's grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from yolokd.compat.boxes import bins_of, expected_distances
from yolokd.predictions import Assigned, HeadInfo, Hidden, Predictions

Sizes = Sequence[tuple[int, int]]  # (H, W) of each level
_FLOOR = 1e-6  # a probability of 0 or 1 has no logit


@dataclass(frozen=True)
class LevelMatch:
    """Levels of two pyramids that see the image alike.

    Levels are matched by stride over image, not by position: a P2 or a P6 model works with the levels that both have.

    Attributes:
        student: indices of the student's levels that take part, finest first.
        teacher: the index of the teacher's level beside each; empty for a teacher without a grid.
        strides: stride of each of these teacher levels in pixels of the student's image.
        ratio: side of the teacher's image over the side of the student's.
        whole: every level of both takes part, beside its equal: nothing is left out and nothing resampled.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    strides: tuple[float, ...]
    ratio: float
    whole: bool

    def only(self, levels: Collection[int]) -> LevelMatch:
        """The same match with some of the student's levels left out."""
        kept = [i for i, level in enumerate(self.student) if level in levels]
        if len(kept) == len(self.student):
            return self
        student = tuple(self.student[i] for i in kept)
        if not self.teacher:
            return replace(self, student=student, whole=False)
        teacher, strides = tuple(self.teacher[i] for i in kept), tuple(self.strides[i] for i in kept)
        return LevelMatch(student, teacher, strides, self.ratio, False)


def match_levels(student: HeadInfo, teacher: HeadInfo, ratio: float = 1.0) -> LevelMatch:
    """Find the teacher's level for each of the student's.

    With images of one size only equal strides belong together. Where the teacher sees a larger image, a student level
    without an equal is given the coarsest teacher level that is finer than it: that one can be averaged down. A teacher
    without strides, whose detections are laid out, speaks at every level; an RT-DETR has strides, and speaks at those.

    Args:
        student: the student's head.
        teacher: the teacher's.
        ratio: side of the teacher's image over the side of the student's, at least 1.
    """
    if not teacher.strides:
        return LevelMatch(tuple(range(len(student.strides))), (), (), ratio, True)
    seen = [stride / ratio for stride in teacher.strides]
    pairs = []
    for mine, stride in enumerate(student.strides):
        fitting = [t for t in seen if t == stride or (ratio != 1 and t < stride)]
        if fitting:
            pairs.append((mine, seen.index(max(fitting))))
    ours, theirs = tuple(s for s, _ in pairs), tuple(t for _, t in pairs)
    equal = list(student.strides) == seen
    return LevelMatch(ours, theirs, tuple(seen[t] for t in theirs), ratio, equal)


def restrict(info: HeadInfo, levels: Sequence[int]) -> HeadInfo:
    """The same head with only some of its levels."""
    hidden = tuple(tuple(tuple(widths[i] for i in levels) for widths in depth) for depth in info.hidden)
    return replace(
        info,
        strides=tuple(info.strides[i] for i in levels),
        widths=tuple(info.widths[i] for i in levels) if info.widths else (),
        hidden=hidden,  # type: ignore[arg-type]
    )


def grid_sizes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """(H, W) of each level for an image of so many pixels, as convolutions with padding give it."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def take_levels(predictions: Predictions, sizes: Sizes, levels: Sequence[int]) -> Predictions:
    """Leave out what is said at the other levels; ``taps`` stay.

    Args:
        predictions: of a head with these levels.
        sizes: of all of the head's levels.
        levels: those to keep.
    """
    index = anchors_of(sizes, levels)
    hidden: Hidden | None = predictions.hidden
    if hidden is not None:
        hidden = tuple(hidden[0][i] for i in levels), tuple(hidden[1][i] for i in levels)
    return replace(
        predictions,
        scores=None if predictions.scores is None else predictions.scores[..., index],
        boxes=None if predictions.boxes is None else predictions.boxes[..., index],
        edges=None if predictions.edges is None else predictions.edges[..., index],
        feats=None if predictions.feats is None else tuple(predictions.feats[i] for i in levels),
        hidden=hidden,
    )


def assigned_at(assigned: Assigned, sizes: Sizes, levels: Sequence[int]) -> Assigned:
    """The assignment at some levels; its normaliser stays the detection loss's own."""
    index = anchors_of(sizes, levels)
    first, second = ("anchors", "strides"), ("labels", "boxes", "scores", "foreground", "gt_index", "weight")
    kept = {f.name: getattr(assigned, f.name) for f in fields(assigned)}
    kept |= {name: kept[name][index] for name in first} | {name: kept[name][:, index] for name in second}
    kept["seen"] = None if assigned.seen is None else tuple(said[:, index] for said in assigned.seen)
    return Assigned(**kept)


def anchors_of(sizes: Sizes, levels: Sequence[int]) -> Tensor:
    """Indices of the anchors of some levels, in their order."""
    counts = [h * w for h, w in sizes]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return torch.cat([torch.arange(0), *(torch.arange(starts[i], starts[i] + counts[i]) for i in levels)])


def on_students_grid(
    said: Predictions, match: LevelMatch, sizes: Sizes, wanted: Sizes, student: HeadInfo
) -> Predictions:
    """A teacher's dense answers on the student's anchors of the matched levels.

    A level with the student's own grid is taken as it is. Of a finer one, class probabilities and features are
    averaged over the cells that a student's cell covers; the box is that of the surest of these cells, since an
    average of two objects' boxes is nobody's, and its edges become the two bins that hold their expected distance. An
    edge that the bins cannot say from the student's anchor (it lies beyond the anchor, or too far away) does not count.

    Args:
        said: the teacher's, on its own grid.
        match: from `match_levels`.
        sizes: the teacher's grid.
        wanted: the student's grid at the matched levels.
        student: the student's head.

    Returns:
        predictions with the student's anchors; ``detections``, ``taps`` and ``reenter`` as they are.
    """
    said = take_levels(said, sizes, match.teacher)
    sizes = [sizes[t] for t in match.teacher]
    if list(sizes) == list(wanted):
        return said
    feats = said.feats
    if feats is not None:
        feats = tuple(
            f if f.shape[-2:] == w else F.adaptive_avg_pool2d(f, w) for f, w in zip(feats, wanted, strict=True)
        )
    counts = [h * w for h, w in sizes]
    scores = None if said.scores is None else torch.split(said.scores.float(), counts, 2)
    boxes = None if said.boxes is None else torch.split(said.boxes.float(), counts, 2)
    known = None if boxes is None else torch.split(_edges_of(said), counts, 2)
    new_scores, new_boxes, new_edges = [], [], []
    for i, (size, target) in enumerate(zip(sizes, wanted, strict=True)):
        own = student.strides[match.student[i]]
        if scores is not None:
            new_scores.append(scores[i] if size == target else _pooled(scores[i], size, target))
        if boxes is not None and known is not None:
            surest = boxes[i].new_zeros(len(boxes[i]), counts[i]) if scores is None else scores[i].amax(1)
            moved = boxes[i], known[i]
            if size != target:
                moved = _surest(*moved, surest, (size, target), match.strides[i] / own)
            new_boxes.append(moved[0])
            new_edges.append(moved[1])
    return replace(
        said,
        feats=feats,
        scores=torch.cat(new_scores, 2) if new_scores else None,
        boxes=torch.cat(new_boxes, 2) if new_boxes else None,
        edges=torch.cat(new_edges, 2) if new_edges else said.edges,
    )


def _edges_of(said: Predictions) -> Tensor:
    """``(B, 4, A)`` which edges of the boxes count, all of them where nothing is said."""
    assert said.boxes is not None
    batch, _, anchors = said.boxes.shape
    return said.boxes.new_ones(batch, 4, anchors, dtype=torch.bool) if said.edges is None else said.edges


def _pooled(logits: Tensor, size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Average probabilities: ``(B, C, H * W)`` logits to ``(B, C, h * w)``."""
    grid = logits.sigmoid().view(*logits.shape[:2], *size)
    return F.adaptive_avg_pool2d(grid, target).flatten(2).logit(_FLOOR)


def _surest(
    raw: Tensor, known: Tensor, confidence: Tensor, sizes: tuple[tuple[int, int], tuple[int, int]], scale: float
) -> tuple[Tensor, Tensor]:
    """The box of the surest cell under each cell of a coarser grid, measured from that one's centre.

    Args:
        raw: ``(B, 4 * R, H * W)`` edge logits.
        known: ``(B, 4, H * W)`` which edges count.
        confidence: ``(B, H * W)`` any measure that rises with how sure the teacher is.
        sizes: (H, W) and the coarser (h, w).
        scale: stride of the finer level over that of the coarser one, below 1.

    Returns:
        ``(B, 4 * R, h * w)`` edge logits in strides of the coarser level, and ``(B, 4, h * w)`` which edges count.
    """
    (height, width), (rows, columns) = sizes
    reg_max = raw.shape[1] // 4
    grid = confidence.view(-1, 1, height, width)
    _, cell = F.adaptive_max_pool2d(grid, (rows, columns), return_indices=True)
    cell = cell.flatten(1)  # (B, h * w)
    edges = raw.gather(2, cell[:, None].expand(-1, raw.shape[1], -1)).transpose(1, 2)  # (B, h * w, 4 * R)
    distances = expected_distances(edges.flatten(0, 1)).view(*edges.shape[:2], 4) * scale
    # From the fine cell's centre to the coarse one's, both in strides of the coarse level.
    there = torch.stack([(cell % width + 0.5) * scale, (cell // width + 0.5) * scale], 2)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    here = torch.stack([x.flatten(), y.flatten()], 1).to(there) + 0.5
    moved = here - there
    distances = distances + torch.cat([moved, -moved], 2)
    known = known.gather(2, cell[:, None].expand(-1, 4, -1))
    if reg_max > 1:
        known = known & ((distances >= 0) & (distances <= reg_max - 1)).transpose(1, 2)
    return bins_of(distances, reg_max).transpose(1, 2), known
