"""One answer of several teachers: an ensemble, or specialists that each speak for some classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolokd.compat.boxes import bins_of, expected_distances
from yolokd.predictions import Predictions

_FLOOR = 1e-6  # a probability of 0 or 1 has no logit


def average(members: Sequence[Predictions], weights: Sequence[float], classes: int) -> Predictions:
    """One answer from several: probabilities are averaged, not logits.

    Source: the mean of probabilities as soft target of an ensemble is that of Hinton, Vinyals, Dean, "Distilling the
    Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531. Ours: a class is averaged over the teachers
    that know it; where they know different classes (specialists), the box of an anchor is averaged with the weight
    times how sure each is of a class of its own there, else with the weight alone.

    Args:
        members: answers on one grid, in the student's class space.
        weights: one a member.
        classes: how many classes the student has.

    Returns:
        ``scores`` of every class that some member knows, ``boxes`` where all have some, ``edges`` where one of them has
        a word; ``members`` as they were.
    """
    speaking = [(m, w) for m, w in zip(members, weights, strict=True) if m.scores is not None]
    scores, known = _mean_scores(speaking, classes) if speaking else (None, None)
    boxes, edges = _mean_boxes(members, weights) if all(m.boxes is not None for m in members) else (None, None)
    whole = known is None or len(known) == classes
    return Predictions(scores, boxes, None, None if whole else known, edges=edges, members=tuple(members))


def _mean_scores(speaking: Sequence[tuple[Predictions, float]], classes: int) -> tuple[Tensor, Tensor]:
    """``(B, M, A)`` logits of the mean probabilities, and the M classes."""
    first = speaking[0][0].scores
    assert first is not None
    total = first.new_zeros(len(first), classes, first.shape[2], dtype=torch.float32)
    weight = total.new_zeros(classes)
    for member, share in speaking:
        assert member.scores is not None
        rows = torch.arange(classes, device=total.device) if member.classes is None else member.classes
        total[:, rows] += share * member.scores.float().sigmoid()
        weight[rows] += share
    known = weight.nonzero().squeeze(1)
    return (total[:, known] / weight[known, None]).logit(_FLOOR), known


def _mean_boxes(members: Sequence[Predictions], weights: Sequence[float]) -> tuple[Tensor, Tensor | None]:
    """Edge logits of the averaged bin distributions, and which edges anybody has a word on.

    Heads with different bins have no common distribution: then the expected distances are averaged.
    """
    every = [m.boxes.float() for m in members if m.boxes is not None]
    batch, _, anchors = every[0].shape
    shares = _box_weights(members, weights)  # N of (B, 4, A)
    total = sum(shares).clamp(min=1e-12)  # type: ignore[union-attr]
    bins = {b.shape[1] // 4 for b in every}
    if len(bins) == 1 and (reg_max := bins.pop()) > 1:
        spread = [b.view(batch, 4, reg_max, anchors).softmax(2) for b in every]
        mixed = sum(s[:, :, None] * p for s, p in zip(shares, spread, strict=True)) / total[:, :, None]
        boxes = mixed.clamp(min=1e-8).log().flatten(1, 2)
    else:
        distances = [expected_distances(b.transpose(1, 2).flatten(0, 1)).view(batch, anchors, 4) for b in every]
        mean = sum(s.transpose(1, 2) * d for s, d in zip(shares, distances, strict=True)) / total.transpose(1, 2)
        boxes = bins_of(mean, 1).transpose(1, 2)
    silent = any(m.edges is not None for m in members)
    return boxes, sum(shares) > 0 if silent else None  # type: ignore[return-value]


def _box_weights(members: Sequence[Predictions], weights: Sequence[float]) -> list[Tensor]:
    """How much each member's edges count at each anchor: ``(B, 4, A)`` each."""
    shares = []
    same = all(_same(members[0].classes, m.classes) for m in members)
    for member, weight in zip(members, weights, strict=True):
        assert member.boxes is not None
        share = member.boxes.new_full((len(member.boxes), 4, member.boxes.shape[2]), weight, dtype=torch.float32)
        if not same and member.scores is not None:
            sure = member.scores.float().sigmoid().amax(1, keepdim=True)
            share = share * sure.clamp(min=_FLOOR)  # where all are 0 the weights alone count
        shares.append(share if member.edges is None else share * member.edges)
    return shares


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
