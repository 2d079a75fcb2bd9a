"""Small tensors that the tests of losses, matching and criterion share."""

from __future__ import annotations

import torch

from yolokd.predictions import Assigned, HeadInfo, Pair, Predictions

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
