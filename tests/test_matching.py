from dataclasses import replace

import pytest
import torch

from tests.helpers import ANCHORS, assignment, grid, predictions
from yolokd.compat.boxes import decode, encode
from yolokd.losses.boxes import LocalizationKD
from yolokd.losses.logits import ClassificationKD
from yolokd.matching import match_positives
from yolokd.predictions import Predictions

POSITIVE, ANSWER = 5, 10  # the student answers at anchor 5 (12, 12), the teacher at anchor 10 (20, 20)


def teacher(classes: torch.Tensor | None = None) -> Predictions:
    """A teacher that finds the object (8, 8, 24, 24) exactly, but at another anchor than the student's positive."""
    scores = torch.full((1, 2, ANCHORS), -6.0)
    scores[0, 1, ANSWER] = 2.0
    boxes = torch.full((1, 4, ANCHORS), 0.1)
    boxes[0, :, ANSWER] = torch.tensor([12.0, 12.0, 4.0, 4.0]) / 8
    return Predictions(scores, boxes, None, classes)


def test_the_teachers_answer_to_the_same_object_is_found_at_another_anchor() -> None:
    ours, theirs, assigned = match_positives(
        predictions(1, reg_max=1), teacher(), assignment(1, foreground=(POSITIVE,))
    )
    assert theirs.scores is not None
    assert theirs.boxes is not None
    assert theirs.scores.shape == (1, 2, 1)
    assert theirs.scores[0, :, 0].tolist() == [-6.0, 2.0]
    box = decode(theirs.boxes[0].T, assigned.anchors, assigned.strides)
    assert box.tolist() == [[8.0, 8.0, 24.0, 24.0]]
    assert ours.scores is not None
    student = predictions(1, reg_max=1).scores
    assert student is not None
    assert torch.equal(ours.scores[0, :, 0], student[0, :, POSITIVE])


def test_only_positives_are_taught() -> None:
    student = predictions(1)
    assert student.scores is not None
    assert student.boxes is not None
    scores, boxes = student.scores.clone().requires_grad_(), student.boxes.clone().requires_grad_()
    matched = match_positives(
        replace(student, scores=scores, boxes=boxes), teacher(), assignment(1, foreground=(POSITIVE,))
    )
    (ClassificationKD()(*matched) + LocalizationKD()(*matched)).backward()
    for grad in (scores.grad, boxes.grad):
        assert grad is not None
        touched = grad.abs().sum((0, 1)).nonzero().flatten().tolist()
        assert touched == [POSITIVE]


def test_a_class_that_the_teacher_does_not_know_is_matched_by_box() -> None:
    known = torch.tensor([0, 2])  # the object is of class 1
    _, theirs, _ = match_positives(predictions(1), teacher(known), assignment(1, foreground=(POSITIVE,)))
    assert theirs.scores is not None
    assert theirs.scores[0, :, 0].tolist() == [-6.0, 2.0]
    assert theirs.classes is known


def test_without_a_positive_nothing_is_taught() -> None:
    matched = match_positives(predictions(1), teacher(), assignment(1, foreground=()))
    assert ClassificationKD()(*matched).item() == 0
    assert LocalizationKD()(*matched).item() == 0


def test_without_a_shared_class_the_box_alone_is_taught() -> None:
    said = replace(teacher(), scores=None)
    ours, theirs, assigned = match_positives(predictions(1, reg_max=1), said, assignment(1, foreground=(POSITIVE,)))
    assert theirs.scores is None
    assert theirs.boxes is not None
    assert decode(theirs.boxes[0].T, assigned.anchors, assigned.strides).tolist() == [[8.0, 8.0, 24.0, 24.0]]
    assert LocalizationKD()(ours, theirs, assigned).item() >= 0


def test_without_boxes() -> None:
    with pytest.raises(ValueError, match="one-to-one"):
        match_positives(predictions(), Predictions(torch.zeros(2, 2, ANCHORS), None, None), assignment())


def test_an_anchor_where_the_teacher_has_no_word_is_nobodys_answer() -> None:
    said = teacher()
    edges = torch.ones(1, 4, ANCHORS, dtype=torch.bool)
    edges[0, :, ANSWER] = False  # its perfect box there was only put there
    second = 9
    boxes = said.boxes.clone()  # type: ignore[union-attr]
    boxes[0, :, second] = torch.tensor([4.0, 12.0, 10.0, 4.0]) / 8  # (8, 8, 22, 24) from (12, 20): less than perfect
    edges[0, 0, second] = False
    _, theirs, assigned = match_positives(
        predictions(1, reg_max=1), replace(said, boxes=boxes, edges=edges), assignment(1, foreground=(POSITIVE,))
    )
    assert theirs.boxes is not None
    assert theirs.edges is not None
    box = decode(theirs.boxes[0].T, assigned.anchors, assigned.strides)[0].tolist()
    points, _ = grid()
    x, y = points[second].tolist()
    assert box == [x - 4, y - 12, x + 10, y + 4]
    assert theirs.edges.shape == (1, 4, 1)
    assert theirs.edges[0, :, 0].tolist() == [False, True, True, True]


def test_the_edges_that_the_teacher_has_a_word_on_are_all_that_is_taught() -> None:
    student, assigned = predictions(1, reg_max=1), assignment(1, foreground=(POSITIVE,))
    edges = torch.ones(1, 4, ANCHORS, dtype=torch.bool)
    everything, some = (
        LocalizationKD()(*match_positives(student, replace(teacher(), edges=e), assigned))
        for e in (edges, edges & torch.tensor([True, False, True, True])[None, :, None])
    )
    assert everything == LocalizationKD()(*match_positives(student, teacher(), assigned))
    assert some != everything
    silent = match_positives(student, replace(teacher(), edges=~edges), assigned)
    assert LocalizationKD()(*silent).item() == 0
    assert ClassificationKD()(*silent).isfinite()


def test_matched_without_a_positive_with_edges() -> None:
    edges = torch.ones(1, 4, ANCHORS, dtype=torch.bool)
    _, theirs, _ = match_positives(predictions(1), replace(teacher(), edges=edges), assignment(1, foreground=()))
    assert theirs.edges is not None
    assert theirs.edges.shape == (1, 4, 0)


def detections(box: list[float], sure: list[float]) -> Predictions:
    """A teacher that has one detection, given to the anchor ANSWER, and says nothing elsewhere."""
    scores = torch.full((1, 2, ANCHORS), -11.0)
    scores[0, :, ANSWER] = torch.tensor(sure)
    anchors, strides = grid()
    boxes = torch.zeros(1, 4, ANCHORS)
    boxes[0, :, ANSWER] = encode(torch.tensor([box]), anchors[[ANSWER]], strides[[ANSWER]])[0]
    edges = torch.zeros(1, 4, ANCHORS, dtype=torch.bool)
    edges[0, :, ANSWER] = True
    return Predictions(scores, boxes, None, edges=edges)


def test_a_detection_of_the_object_is_its_answer() -> None:
    found = detections([8, 8, 24, 22], [-9.0, 2.0])
    _, theirs, assigned = match_positives(predictions(1, reg_max=1), found, assignment(1, foreground=(POSITIVE,)))
    assert theirs.scores is not None
    assert theirs.scores[0, :, 0].tolist() == [-9.0, 2.0]
    assert assigned.weight.shape == (1, 1)


@pytest.mark.parametrize("box", [[16, 16, 30, 30], [0.0, 0, 4, 4]], ids=["a neighbour", "far away"])
def test_an_object_that_the_teacher_has_not_detected_is_not_taught(box: list[float]) -> None:
    # Its nearest detection is a sure one of another class.
    ours, theirs, assigned = match_positives(
        predictions(1, reg_max=1), detections(box, [3.0, -9.0]), assignment(1, foreground=(POSITIVE,))
    )
    assert ours.scores is not None
    assert ours.scores.shape == (1, 2, 0)
    assert assigned.labels.shape == (1, 0)
    assert ClassificationKD()(ours, theirs, assigned).item() == 0
    assert LocalizationKD()(ours, theirs, assigned).item() == 0
