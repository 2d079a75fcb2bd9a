"""A teacher through its student's eyes: classes by name, grids by stride, pixels of the student's image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from yolokd.classes import ClassMap
from yolokd.compat.boxes import anchor_points, decode, encode, expected_distances
from yolokd.levels import grid_sizes, match_levels
from yolokd.predictions import HeadInfo, Predictions, SoftDetections
from yolokd.teachers.live import LARGER
from yolokd.teachers.view import View

OURS = {0: "red", 1: "green", 2: "blue"}
THEIRS = {0: "dog", 1: "Blue", 2: "cat", 3: "red", 4: "verde"}


def info(names: dict[int, str], strides: tuple[int, ...] = (8, 16, 32), reg_max: int = 16) -> HeadInfo:
    return HeadInfo(names, strides, tuple(range(10, 10 + len(strides))), reg_max, False)


class Says:
    """A teacher that says what it was told, whatever it is asked."""

    def __init__(self, head: HeadInfo, answer: Predictions) -> None:
        self.info, self.name, self.answer = head, "told", answer

    def __call__(self, batch: Any) -> Predictions:
        return self.answer


def view(
    teacher: Says,
    student: HeadInfo,
    ratio: float = 1,
    overrides: dict[str, str] | None = None,
    only: set[int] | None = None,
) -> View:
    return View(
        teacher,
        student,
        ClassMap.by_name(teacher.info.names, student.names, overrides, only),
        match_levels(student, teacher.info, ratio),
    )


def test_classes_in_another_order_come_out_in_the_students() -> None:
    head = info(THEIRS, (8,))
    scores = torch.arange(5.0).view(1, 5, 1).repeat(1, 1, 64)
    got = view(Says(head, Predictions(scores, None, None)), info(OURS, (8,)))({"img": torch.zeros(1, 3, 64, 64)})
    assert got.scores is not None
    assert got.classes is not None
    assert got.classes.tolist() == [0, 2]
    assert got.scores[0, :, 0].tolist() == [3.0, 1.0]  # red, then Blue
    every = view(Says(head, Predictions(scores, None, None)), info(OURS, (8,)), overrides={"verde": "green"})
    got = every({"img": torch.zeros(1, 3, 64, 64)})
    assert got.classes is None
    assert got.scores is not None
    assert got.scores[0, :, 0].tolist() == [3.0, 4.0, 1.0]
    filtered = view(Says(head, Predictions(scores, None, None)), info(OURS, (8,)), only={2})
    got = filtered({"img": torch.zeros(1, 3, 64, 64)})
    assert got.classes is not None
    assert got.classes.tolist() == [2]


def test_an_alias_is_the_surer_of_two_classes() -> None:
    head = info({0: "motorbike", 1: "x", 2: "motorcycle"}, (8,))
    scores = torch.tensor([1.0, 9.0, 2.0]).view(1, 3, 1).repeat(1, 1, 64)
    student = info({0: "y", 1: "motorcycle"}, (8,))
    got = view(Says(head, Predictions(scores, None, None)), student)({"img": torch.zeros(1, 3, 64, 64)})
    assert got.scores is not None
    assert got.scores[0, :, 0].tolist() == [2.0]  # an exact namesake beats the alias


def test_without_a_common_class_boxes_and_features_stay() -> None:
    head = info({0: "dog"}, (8,))
    answer = Predictions(torch.zeros(1, 1, 64), torch.zeros(1, 64, 64), (torch.zeros(1, 10, 8, 8),))
    got = view(Says(head, answer), info(OURS, (8,)))({"img": torch.zeros(1, 3, 64, 64)})
    assert got.scores is None
    assert got.boxes is answer.boxes
    assert got.feats is answer.feats
    found = SoftDetections(
        torch.zeros(2, 4), torch.ones(2, 1), torch.zeros(2, dtype=torch.long), torch.ones(2, 4).bool()
    )
    got = view(Says(head, Predictions(None, None, None, detections=found)), info(OURS, (8,)))(
        {"img": torch.zeros(1, 3, 64, 64)}
    )
    assert got.detections is not None
    assert got.detections.scores.shape == (2, 0)  # laid out by the student's own highest class


def place(strides: tuple[int, ...], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    feats = tuple(torch.zeros(1, 1, *s) for s in grid_sizes(side, side, strides))
    return anchor_points(feats, strides)


@pytest.mark.parametrize(("mine", "theirs"), [((4, 8, 16, 32), (8, 16, 32)), ((8, 16, 32), (4, 8, 16, 32, 64))])
def test_shared_levels_keep_their_place(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """The score of an anchor is its x in pixels and its stride: what arrives must be those of the student's anchors."""
    points, strides = place(theirs, 128)
    scores = torch.stack([points[:, 0], strides])[None]
    head = info({0: "red", 1: "green"}, theirs)
    feats = tuple(torch.full((1, 1, 1, 1), s) for s in theirs)
    pair = view(Says(head, Predictions(scores, None, feats)), info(OURS, mine))
    got = pair({"img": torch.zeros(1, 3, 128, 128)})
    points, strides = place((8, 16, 32), 128)
    assert got.scores is not None
    assert torch.equal(got.scores[0], torch.stack([points[:, 0], strides]))
    assert got.feats is not None
    assert [float(f) for f in got.feats] == [8, 16, 32]
    both = pair.pair()
    assert both.student.strides == both.teacher.strides == (8, 16, 32)
    assert both.student.widths == tuple(10 + mine.index(s) for s in (8, 16, 32))
    assert both.teacher.widths == tuple(10 + theirs.index(s) for s in (8, 16, 32))


@pytest.mark.parametrize("ratio", [2, 1.5])
def test_a_box_in_the_larger_image_is_the_same_box_in_the_smaller(ratio: float) -> None:
    """A teacher that says one box everywhere, surely: every anchor of the student's that can say it must say it."""
    box = torch.tensor([30.0, 40.0, 90.0, 100.0])  # in the student's 128 px
    head = info(OURS)
    points, strides = place(head.strides, round(128 * ratio))
    raw = encode(box * ratio, points, strides)[None].transpose(1, 2)
    answer = Predictions(torch.ones(1, 3, len(points)), raw, None)
    got = view(Says(replace(head, reg_max=1), answer), replace(head, reg_max=1), ratio)(
        {"img": torch.zeros(1, 3, 128, 128), LARGER: torch.zeros(1, 3, *[round(128 * ratio)] * 2)}
    )
    points, strides = place(head.strides, 128)
    assert got.boxes is not None
    found = decode(expected_distances(got.boxes[0].T), points, strides)
    assert torch.allclose(found, box.expand_as(found), atol=1e-3)


def test_the_surest_cell_is_that_of_a_class_that_counts() -> None:
    """Two cells under one: the surer one is sure of a class that the student does not have."""
    head = info({0: "dog", 1: "red"}, (8,), 1)
    scores = torch.full((1, 2, 256), -5.0)
    scores[0, 0, 0], scores[0, 1, 1] = 9.0, 3.0
    raw = torch.zeros(1, 4, 256)
    raw[..., 0], raw[..., 1] = 50.0, 2.0
    # Both pyramids of stride 16 alone: the teacher's 16 x 16 cells fall on the student's 8 x 8.
    head, student = replace(head, strides=(16,)), info(OURS, (16,), 1)
    got = view(Says(head, Predictions(scores, raw, None)), student, 2)(
        {"img": torch.zeros(1, 3, 128, 128), LARGER: torch.zeros(1, 3, 256, 256)}
    )
    assert got.boxes is not None
    assert got.boxes[0, :, 0].sum().item() == pytest.approx(4 * 2.0 / 2)  # the shift cancels in left + right


def test_detections_are_brought_to_the_students_pixels_and_classes() -> None:
    head = info(THEIRS, ())
    found = SoftDetections(
        boxes=torch.tensor([[10.0, 20.0, 30.0, 40.0]]),
        scores=torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]]),
        image=torch.tensor([0]),
        edges=torch.tensor([[True, False, True, True]]),
        bins=torch.zeros(1, 64),
        points=torch.tensor([[24.0, 24.0]]),
        strides=torch.tensor([16.0]),
    )
    asked = view(Says(head, Predictions(None, None, None, detections=found)), info(OURS), 2)
    got = asked({"img": torch.zeros(1, 3, 64, 64), LARGER: torch.zeros(1, 3, 128, 128)})
    assert got.detections is not None
    assert got.detections.boxes.tolist() == [[5.0, 10.0, 15.0, 20.0]]
    assert got.detections.scores[0].tolist() == pytest.approx([0.4, 0.2])
    assert got.classes is not None
    assert got.classes.tolist() == [0, 2]
    assert got.detections.points is not None
    assert got.detections.strides is not None
    assert (got.detections.points.tolist(), got.detections.strides.tolist()) == ([[12.0, 12.0]], [8.0])
    assert got.detections.edges.tolist() == found.edges.tolist()
    assert asked.pair().teacher.strides == (8, 16, 32)
    assert asked.pair().teacher.widths == ()


def test_what_is_of_no_mapped_class_takes_no_anchor() -> None:
    scores = [[0.9, 0.01, 0.9, 0.02, 0.9], [0.1, 0.01, 0.2, 0.06, 0.0], [float("nan")] * 5]  # mapped: 1 and 3
    found = SoftDetections(
        boxes=torch.arange(12.0).view(3, 4),
        scores=torch.tensor(scores),
        image=torch.tensor([0, 1, 1]),
        edges=torch.ones(3, 4).bool(),
        bins=torch.arange(3.0)[:, None].expand(3, 64),
        points=torch.arange(6.0).view(3, 2),
        strides=torch.tensor([8.0, 16.0, 32.0]),
    )
    got = view(Says(info(THEIRS, ()), Predictions(None, None, None, detections=found)), info(OURS))(
        {"img": torch.zeros(2, 3, 64, 64)}
    ).detections
    assert got is not None
    for name in ("boxes", "image", "edges", "bins", "points", "strides"):
        assert torch.equal(getattr(got, name), getattr(found, name)[1:]), name
    assert got.scores[0].max().item() == pytest.approx(0.06)
    assert got.scores[1].isnan().all()


def test_no_detection_at_all() -> None:
    found = SoftDetections(
        torch.zeros(0, 4), torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4).bool()
    )
    asked = view(Says(info(THEIRS, ()), Predictions(None, None, None, detections=found)), info(OURS), 2)
    got = asked({"img": torch.zeros(1, 3, 64, 64)})
    assert got.detections is not None
    assert got.detections.scores.shape == (0, 2)


def test_the_door_answers_in_the_students_classes() -> None:
    head = info(THEIRS, (8,))
    inside = Predictions(torch.arange(5.0).view(1, 5, 1), torch.zeros(1, 64, 1), None)
    answer = Predictions(torch.zeros(1, 5, 64), torch.zeros(1, 64, 64), None, reenter=lambda hidden: inside)
    got = view(Says(head, answer), info(OURS, (8,)))({"img": torch.zeros(1, 3, 64, 64)})
    assert got.reenter is not None
    cross = got.reenter(((), ()))
    assert cross.scores is not None
    assert cross.scores.flatten().tolist() == [3.0, 1.0]
