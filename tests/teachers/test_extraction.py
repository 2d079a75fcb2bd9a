from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics.utils.nms import non_max_suppression

from yolokd.compat.boxes import decode, encode, expected_distances, grid
from yolokd.predictions import HeadInfo, Predictions, SoftDetections
from yolokd.teachers.cache_file import Found
from yolokd.teachers.extraction import extract

PLAIN = HeadInfo({0: "a", 1: "b", 2: "c"}, (8, 16, 32), (), 1, end2end=False)
BINS = HeadInfo(PLAIN.names, PLAIN.strides, (), 16, end2end=False)
POINTS, STRIDES = grid(64, PLAIN.strides)


def say(boxes: dict[int, list[float]], scores: dict[int, list[float]]) -> Predictions:
    """One image without bins: boxes in pixels and probabilities of some anchors, next to nothing elsewhere."""
    logits, edges = torch.full((1, 3, 84), -20.0), torch.zeros(1, 4, 84)
    for i, box in boxes.items():
        edges[0, :, i] = encode(torch.tensor([box]), POINTS[i : i + 1], STRIDES[i : i + 1])[0]
        logits[0, :, i] = torch.tensor(scores[i]).logit()
    return Predictions(logits, edges, None)


def one(said: Predictions, conf: float = 0.1, iou: float = 0.5, max_det: int = 300) -> Found:
    return extract(said, PLAIN, 64, 1, conf=conf, iou=iou, max_det=max_det)[0]


def test_of_two_that_are_equally_sure_the_lower_anchor_wins() -> None:
    box = [10.0, 10, 40, 40]
    said = say({30: box, 9: [11.0, 10, 40, 40], 50: box}, {i: [0.2, 0.8, 0.1] for i in (30, 9, 50)})
    got = one(said)
    assert np.allclose(got.boxes, [[11, 10, 40, 40]])
    assert np.allclose(got.scores, [[0.2, 0.8, 0.1]])


def test_many_equals_stay_in_their_order() -> None:
    boxes = {i: [float(x), 5, x + 4.0, 9] for i, x in zip(range(60), range(0, 600, 10), strict=True)}
    got = one(say(boxes, {i: [0.5, 0.5, 0.1] for i in range(60)}))
    assert np.allclose(got.boxes[:, 0], np.arange(0, 600, 10), atol=1e-3)


def test_a_thousand_equals_stay_in_their_order() -> None:
    """From a thousand boxes on torchvision suppresses class by class, and sorts without stability."""
    x = torch.arange(1500.0) * 10
    boxes = torch.stack([x, x * 0, x + 4, x * 0 + 4], 1)
    scores = torch.eye(3)[torch.arange(1500) % 3] * 0.5
    given = SoftDetections(boxes, scores, torch.zeros(1500, dtype=torch.int64), torch.ones(1500, 4, dtype=torch.bool))
    got = one(Predictions(None, None, None, detections=given), max_det=2000)
    assert np.array_equal(got.boxes, boxes)


def test_classes_do_not_suppress_each_other() -> None:
    box = [10.0, 10, 40, 40]
    got = one(say({9: box, 10: box}, {9: [0.8, 0.2, 0.1], 10: [0.2, 0.7, 0.1]}))
    assert got.scores.argmax(1).tolist() == [0, 1]


def test_only_what_is_above_the_threshold_and_the_surest_so_many() -> None:
    boxes = {i: [i * 10.0, 0, i * 10 + 5.0, 5] for i in range(4)}
    said = say(boxes, {0: [0.3, 0.1, 0.1], 1: [0.05, 0.09, 0.01], 2: [0.1, 0.9, 0.1], 3: [0.1, 0.1, 0.6]})
    assert one(said, conf=0.25).boxes[:, 0].round().tolist() == [20, 30, 0]
    assert one(said, max_det=2).boxes[:, 0].round().tolist() == [20, 30]
    assert one(said, conf=0.95).boxes.shape == (0, 4)
    assert one(said, conf=0.95).scores.shape == (0, 3)


def test_the_same_as_ultralytics_nms() -> None:
    torch.manual_seed(0)
    logits, edges = torch.randn(2, 3, 84) * 2 - 1, torch.randn(2, 64, 84) * 2
    found = extract(Predictions(logits, edges, None), BINS, 64, 2, conf=0.25, iou=0.45, max_det=300)
    boxes = decode(expected_distances(edges.transpose(1, 2).reshape(-1, 64)).view(2, 84, 4), POINTS, STRIDES)
    center, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    theirs = non_max_suppression(
        torch.cat([center, side, logits.sigmoid().transpose(1, 2)], 2).transpose(1, 2), 0.25, 0.45
    )
    for i, (ours, rows) in enumerate(zip(found, theirs, strict=True)):
        assert len(rows) > 5
        assert np.allclose(ours.boxes, rows[:, :4], atol=1e-3)
        assert np.allclose(ours.scores.max(1), rows[:, 4], atol=1e-6)
        assert ours.scores.argmax(1).tolist() == rows[:, 5].tolist()
        assert ours.anchors is not None
        assert np.array_equal(ours.bins, edges[i][:, ours.anchors].T)
        assert np.allclose(ours.scores, logits[i][:, ours.anchors].T.sigmoid())


def test_a_teacher_without_a_grid() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30], [1, 1, 2, 2]])
    scores = torch.tensor([[0.3, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.5, 0.1], [0.01, 0.01, 0.01]])
    given = SoftDetections(boxes, scores, torch.tensor([2, 2, 0, 0]), torch.ones(4, 4, dtype=torch.bool))
    said = Predictions(None, None, None, detections=given)
    got = extract(said, PLAIN, 64, 3, conf=0.1, iou=0.7, max_det=300)
    assert [one.boxes.tolist() for one in got] == [[[20, 20, 30, 30]], [], [[0, 0, 10, 11]]]
    assert all(one.bins is None and one.anchors is None for one in got)
    with pytest.raises(ValueError, match="reg_max is 16"):
        extract(said, BINS, 64, 3, conf=0.1, iou=0.7, max_det=300)


def test_a_teacher_that_says_nothing_of_use() -> None:
    with pytest.raises(ValueError, match="needs scores and boxes"):
        extract(Predictions(None, None, None), BINS, 64, 1, conf=0.1, iou=0.7, max_det=300)
