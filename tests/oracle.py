"""A teacher that says what a test wants it to say."""

from __future__ import annotations

from typing import Any

import torch

from tests.conftest import NAMES
from yolokd.compat.boxes import anchor_points, bins_of, encode
from yolokd.predictions import HeadInfo, Predictions

SIDE = 64
TURNED = {0: "blue", 1: "red", 2: "green"}  # of the student's red, green, blue


class Oracle:
    """A teacher that sees given boxes on the student's grid, at the anchor in their middle: rows of (image, class,
    probability, x1, y1, x2, y2); its classes stand in another order than the student's."""

    name = "oracle"

    def __init__(self, rows: list[tuple[float, ...]], names: dict[int, str]) -> None:
        self.rows, self.asked = rows, 0
        self.info = HeadInfo(names, (8, 16, 32), (), 16, False)

    def __call__(self, batch: dict[str, Any]) -> Predictions:
        self.asked += 1
        images = batch["img"]
        feats = tuple(torch.zeros(1, 1, SIDE // s, SIDE // s) for s in (8, 16, 32))
        anchors, strides = anchor_points(feats, (8, 16, 32))
        scores = torch.full((len(images), len(self.info.names), len(anchors)), -12.0)
        boxes = bins_of(torch.zeros(len(images), len(anchors), 4), 16).transpose(1, 2).clone()
        index = {name: i for i, name in self.info.names.items()}
        for image, label, probability, *box in self.rows:
            middle = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
            at = int(((anchors - middle).norm(dim=1) + strides).argmin())
            i = int(image)
            scores[i, index[NAMES[int(label)]], at] = torch.tensor(probability).logit()
            edges = encode(torch.tensor([box]), anchors[at : at + 1], strides[at : at + 1])
            boxes[i, :, at] = bins_of(edges, 16)[0]
        return Predictions(scores, boxes, None)
