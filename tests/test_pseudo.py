"""Images without labels: what is a target, what is doubt, and that neither counts as background."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import NAMES
from tests.helpers import ANCHORS, grid, panel, predictions
from tests.oracle import SIDE, TURNED, Oracle
from tests.test_criterion import batch, detector
from yolokd.balance import Balance
from yolokd.classes import ClassMap
from yolokd.compat.boxes import anchor_points, bins_of
from yolokd.compat.checkpoint import head_info
from yolokd.compat.joined import UNLABELLED
from yolokd.compat.training import PartialBCE, branch_losses
from yolokd.criterion import DistillationCriterion
from yolokd.losses.base import build_losses
from yolokd.predictions import Pair, Predictions, SoftDetections
from yolokd.pseudo import NEVER, PseudoLabels, detections, doubts
from yolokd.schedule import Schedule


def make(
    rows: list[tuple[float, ...]],
    thresholds: tuple[float, ...] = (0.6, 0.6, 0.6),
    student: str = "yolo11n.yaml",
    gains: dict[str, float] | None = None,
    **pseudo: Any,
) -> tuple[Any, DistillationCriterion, Oracle]:
    model = detector(student, 0)
    info = head_info(model)
    oracle = Oracle(rows, TURNED)
    gains = gains or {"cls": 1.0}
    losses = build_losses(gains, {}, Pair(info, oracle.info), 0)
    criterion = DistillationCriterion(
        *(model.init_criterion(), panel(oracle, info, ClassMap.by_name(TURNED, NAMES)), losses, (8, 16, 32)),
        *(Schedule("constant", 10, 0), Balance(None, gains)),
        watch=False,  # measuring runs a gradient of its own through what a test retains
        pseudo=PseudoLabels(torch.tensor(thresholds), **pseudo),
    )
    return model.train(), criterion, oracle


def data(flags: tuple[bool, ...] = (False, True), rows: list[tuple[float, ...]] | None = None) -> dict[str, Any]:
    """A batch of two images of 64 px; the labels are (image, class, x, y, w, h), normalised."""
    table = torch.tensor(rows if rows is not None else [(0, 1, 0.5, 0.5, 0.4, 0.4)]).view(-1, 6)
    torch.manual_seed(5)
    images = torch.rand(len(flags), 3, SIDE, SIDE)
    return {"img": images, "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:], UNLABELLED: flags}


def detection_loss(model: Any, criterion: DistillationCriterion, given: dict[str, Any]) -> Tensor:
    """Only the three terms of Ultralytics."""
    torch.manual_seed(0)
    total: Tensor = criterion(model(given["img"]), given)[0][:3]
    return total


def test_a_confident_detection_is_a_label_of_the_students_class() -> None:
    # Image 1: the teacher sees class 2 (its own index 0) at 16..48.
    model, criterion, _ = make([(1, 2, 0.9, 16, 16, 48, 48)])
    taught = detection_loss(model, criterion, data())
    written = data((False, False), [(0, 1, 0.5, 0.5, 0.4, 0.4), (1, 2, 0.5, 0.5, 0.5, 0.5)])
    torch.testing.assert_close(taught, detection_loss(model, criterion, written), rtol=1e-4, atol=1e-4)
    wrong = data((False, False), [(0, 1, 0.5, 0.5, 0.4, 0.4), (1, 0, 0.5, 0.5, 0.5, 0.5)])
    assert not torch.allclose(taught, detection_loss(model, criterion, wrong), rtol=1e-3)


def test_labels_of_labelled_images_are_not_the_teachers_business() -> None:
    model, criterion, _ = make([(0, 2, 0.9, 0, 0, 20, 20), (1, 0, 0.3, 8, 8, 56, 56)])
    plain = criterion.base(model(data()["img"]), data((False, False)))[0]
    torch.testing.assert_close(detection_loss(model, criterion, data((False, False))), plain)
    assert not torch.allclose(detection_loss(model, criterion, data()), plain)


def test_background_counts_and_doubt_does_not() -> None:
    """The class gradient of an image without labels: pushed down where the teacher sees nothing, none in its doubt."""
    model, criterion, _ = make([(0, 1, 0.3, 8, 8, 40, 40)])
    given = data((True,), [])
    preds = model(given["img"])
    preds["scores"].retain_grad()
    criterion(preds, given)[0][:3].sum().backward()
    gradient = preds["scores"].grad[0]  # (C, A)
    anchors, _ = anchor_points(preds["feats"], (8, 16, 32))
    inside = ((anchors >= 8) & (anchors <= 40)).all(1)
    assert inside.any()
    assert (gradient[1, inside] == 0).all()
    assert (gradient[1, ~inside] > 0).all()
    assert (gradient[[0, 2]] > 0).all()  # of the other classes it is sure


def test_an_anchor_of_a_target_counts_inside_a_doubt() -> None:
    """A doubtful `green` around a sure one does not take its positives away."""
    sure, doubt = (0, 1, 0.9, 16, 16, 48, 48), (0, 1, 0.3, 0, 0, 64, 40)
    grads = []
    for rows in ([sure], [sure, doubt]):
        model, criterion, _ = make(rows)
        given = data((True,), [])
        preds = model(given["img"])
        preds["scores"].retain_grad()
        criterion(preds, given)[0][:3].sum().backward()
        grads.append(preds["scores"].grad[0, 1].clone())
    anchors, _ = anchor_points(preds["feats"], (8, 16, 32))
    doubtful = anchors[:, 1] <= 40
    up = grads[0] < 0
    assert (up & doubtful).any()
    assert up.any()
    assert torch.equal(grads[0][up], grads[1][up])
    assert (grads[1][doubtful & ~up] == 0).all()
    assert (grads[1][~doubtful] != 0).all()


def test_soft_targets_reach_what_is_no_box() -> None:
    """An object that the teacher is too unsure of for a box still weighs in the distillation losses."""
    given = data((True,), [])
    quiet, heard = (make(rows, gains={"box": 1.0})[:2] for rows in ([], [(0, 1, 0.4, 8, 8, 40, 40)]))
    for (model, criterion), said in ((quiet, False), (heard, True)):
        items = criterion(model(given["img"]), given)[1]
        assert (float(items["kd_box_loss"]) > 0) is said


def test_pseudo_boxes_off_and_classes_that_have_none() -> None:
    rows = [(1, 2, 0.95, 16, 16, 48, 48), (1, 0, 0.95, 0, 0, 20, 20)]
    model, criterion, _ = make(rows, (NEVER, NEVER, NEVER))
    nothing = detection_loss(model, criterion, data())
    only_red = make(rows, (0.5, 0.5, NEVER))
    assert not torch.equal(detection_loss(*only_red[:2], data()), nothing)
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("student", ["yolo11n.yaml", "yolo26n.yaml"])
def test_after_the_end_images_without_labels_do_not_count_at_all(student: str) -> None:
    model, criterion, oracle = make([(1, 2, 0.9, 16, 16, 48, 48)], student=student, until=3.0)
    criterion.begin_epoch(3, 10, Schedule("constant", 10, 0, 8))
    given = data()
    preds = model(given["img"])
    raw = preds.get("one2many", preds)
    raw["scores"].retain_grad()
    criterion(preds, given)[0].sum().backward()
    assert (raw["scores"].grad[1] == 0).all()
    assert (raw["scores"].grad[0] != 0).any()
    assert criterion.asks is (oracle.asked > 0)


def test_both_branches_of_an_end2end_student_are_silent_in_doubt() -> None:
    model, criterion, _ = make([(0, 1, 0.3, 8, 8, 40, 40)], student="yolo26n.yaml")
    given = data((True,), [])
    preds = model(given["img"])
    for branch in ("one2many", "one2one"):
        preds[branch]["scores"].retain_grad()
    criterion(preds, given)[0][:3].sum().backward()
    anchors, _ = anchor_points(preds["one2many"]["feats"], (8, 16, 32))
    inside = ((anchors >= 8) & (anchors <= 40)).all(1)
    for branch in ("one2many", "one2one"):
        gradient = preds[branch]["scores"].grad[0, 1]
        assert (gradient[inside] == 0).all()
        assert (gradient[~inside] != 0).any()


def test_the_teacher_is_asked_once_a_step_and_also_when_distillation_rests() -> None:
    model, criterion, oracle = make([(1, 2, 0.9, 16, 16, 48, 48)])
    criterion(model(data()["img"]), data())
    assert oracle.asked == 1
    criterion.begin_epoch(9, 10, Schedule("constant", 10, 0, 5))  # closed: the gains are 0
    assert criterion.asks
    items = criterion(model(data()["img"]), data())[1]
    assert (oracle.asked, float(items["kd_cls_loss"])) == (2, 0.0)


def test_a_batch_without_such_images_is_the_plain_one_bit_by_bit() -> None:
    model, criterion, _ = make([(0, 2, 0.9, 0, 0, 20, 20)])
    plain = detector("yolo11n.yaml", 0).train()
    given = batch()
    ours, theirs = criterion(model(given["img"]), given)[0][:3], plain.init_criterion()(plain(given["img"]), given)[0]
    assert torch.equal(ours, theirs)


def test_partial_bce_is_torchs_own_until_something_is_ignored() -> None:
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 5, 3, generator=g), torch.rand(2, 5, 3, generator=g).round()
    part = PartialBCE()
    whole = torch.nn.BCEWithLogitsLoss(reduction="none")(logits, target)
    assert torch.equal(part(logits, target), whole)
    part.ignored = torch.ones(2, 5, 3, dtype=torch.bool)
    assert torch.equal(part(logits, target), whole * (target > 0))


def test_a_detection_loss_of_another_kind_is_refused() -> None:
    loss = branch_losses(detector("yolo11n.yaml", 0).init_criterion()).dense
    loss.bce = torch.nn.MSELoss(reduction="none")
    with pytest.raises(RuntimeError, match="not supported"):
        PartialBCE.install(loss)


def test_labels_stay_in_the_order_of_the_images() -> None:
    """Ultralytics' loss counts a batch's boxes image by image; boxes at the end would be given to other images."""
    found = SoftDetections(
        torch.tensor([[0.0, 0, 20, 20], [10, 10, 30, 30]]),
        torch.tensor([[0.9, 0.0], [0.0, 0.8]]),
        torch.tensor([2, 0]),
        torch.ones(2, 4, dtype=torch.bool),
    )
    targets = PseudoLabels(torch.tensor([0.5, 0.5]))(
        found, torch.tensor([True, False, True]), torch.zeros(1, 2), (40, 40)
    )
    given = {
        "img": torch.zeros(3, 3, 40, 40),
        "batch_idx": torch.tensor([1.0, 1.0]),
        "cls": torch.tensor([[5.0], [6.0]]),
        "bboxes": torch.full((2, 4), 0.5),
    }
    both = targets.beside(given)
    assert both["batch_idx"].tolist() == [0, 1, 1, 2]
    assert both["cls"].flatten().tolist() == [1, 5, 6, 0]
    torch.testing.assert_close(both["bboxes"][0], torch.tensor([0.5, 0.5, 0.5, 0.5]))
    assert len(given["cls"]) == 2


def test_what_augmentation_has_cut_off_is_no_target() -> None:
    found = SoftDetections(
        torch.tensor([[38.5, 0, 60, 20], [-30.0, -30, 20, 20]]),
        torch.tensor([[0.9], [0.9]]),
        torch.tensor([0, 0]),
        torch.ones(2, 4, dtype=torch.bool),
    )
    targets = PseudoLabels(torch.tensor([0.5]))(found, torch.tensor([True]), torch.zeros(1, 2), (40, 40))
    assert targets.boxes.tolist() == [[0, 0, 20, 20]]


def test_classes_that_no_teacher_speaks_for_are_in_doubt_everywhere() -> None:
    nothing = SoftDetections(torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0, 4).bool())
    labels = PseudoLabels(torch.full((3,), 0.5), torch.tensor([True, False, True]))
    ignored = labels(nothing, torch.tensor([True, False]), torch.rand(5, 2), (8, 8)).ignored
    assert ignored[0].tolist() == [[False, True, False]] * 5
    assert not ignored[1].any()


def test_a_doubt_between_two_anchors_silences_the_nearer_one() -> None:
    anchors = torch.tensor([[4.0, 4], [12, 4], [4, 12], [12, 12]])
    seen = doubts(torch.tensor([[5.0, 5, 9, 9]]), torch.tensor([[0.3]]), torch.tensor([0]), 1, anchors)
    assert seen[0, :, 0].tolist() == [True, False, False, False]


def test_doubts_are_of_the_classes_and_the_place() -> None:
    anchors = torch.tensor([[5.0, 5], [15, 5], [25, 25]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]])
    scores = torch.tensor([[0.3, 0.05], [0.0, 0.2], [0.3, 0.3]])
    seen = doubts(boxes, scores, torch.tensor([0, 0, 2]), 3, anchors)
    assert seen[0].tolist() == [[True, True], [False, True], [False, False]]
    assert not seen[1].any()
    assert seen[2].all()


def test_detections_of_several_teachers_are_one_list() -> None:
    """On a grid and without one; the same object is named once, classes that only one knows keep their column."""
    anchors, strides = grid()
    dense = predictions(batch=1, classes=1)
    quiet = torch.full((1, 1, ANCHORS), -12.0)
    quiet[0, 0, 5] = 2.0
    boxes = bins_of(torch.ones(1, ANCHORS, 4), 4).transpose(1, 2)
    one = Predictions(quiet, boxes, dense.feats, classes=torch.tensor([1]))
    x, y = anchors[5].tolist()
    theirs = torch.tensor([[x - 8, y - 8, x + 8, y + 8], [0.0, 0, 9, 9], [0, 0, 9, 9]])
    scores = torch.tensor([[0.2, 0.5], [0.7, 0.1], [0.05, 0.02]])
    other = Predictions(
        None, None, None, detections=SoftDetections(theirs, scores, torch.tensor([0, 0, 0]), torch.ones(3, 4).bool())
    )
    found = detections([one, other], torch.tensor([True]), anchors, strides, 2)
    assert found.scores.argmax(1).tolist() == [1, 0]
    assert found.scores[0].tolist() == [0.0, pytest.approx(0.8808, abs=1e-4)]
    torch.testing.assert_close(found.boxes[0], theirs[0])
    assert not len(detections([one, other], torch.tensor([False]), anchors, strides, 2).boxes)
