import math

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel

from tests.helpers import ANCHORS, assignment, pair, predictions
from yolokd.losses.score_weighted import ScoreWeightedL2
from yolokd.predictions import Predictions


def small(*values: tuple[float, float, float]) -> ScoreWeightedL2:
    """One channel to one: first weight, second weight, second bias of each level."""
    loss = ScoreWeightedL2((1,) * len(values), (1,) * len(values))
    for project, (first, second, bias) in zip(loss.projector, values, strict=True):
        for p, v in zip(project.parameters(), (first, 0.0, second, bias), strict=True):
            nn.init.constant_(p, v)
    return loss


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_value_by_hand() -> None:
    # Project: 3 * relu(2 x) + 1 of (1, -1) = (7, 1). Teacher (5, 0): squared errors (4, 1).
    # Highest probabilities: logits (0, ln 3) -> (1/2, 3/4), each the larger of two classes.
    # (4 / 2 + 1 * 3/4) / (1/2 + 3/4) = 2.75 / 1.25
    scores = torch.tensor([[0.0, -2.0], [-1.0, math.log(3)]])[None]
    result = small((2.0, 3.0, 1.0))(
        Predictions(None, None, (row(1.0, -1.0),)), Predictions(scores, None, (row(5.0, 0.0),)), assignment()
    )
    assert result.item() == pytest.approx(2.75 / 1.25)


def test_levels_are_added_and_take_their_own_scores() -> None:
    # Identity on positive values. Errors (1, 4) at level 1 with probabilities (1/2, 3/4), 9 at level 2 with 1/2 (any
    # weight is the same there): (1/2 + 3) / (5/4) + 9.
    scores = torch.tensor([[[0.0, math.log(3), 0.0]]])
    student = Predictions(None, None, (row(1.0, 1.0), row(1.0)))
    teacher = Predictions(scores, None, (row(2.0, 3.0), row(4.0)))
    result = small((1.0, 1.0, 0.0), (1.0, 1.0, 0.0))(student, teacher, assignment())
    assert result.item() == pytest.approx(3.5 / 1.25 + 9)


@pytest.fixture(scope="module")
def native() -> DistillationModel:
    torch.manual_seed(0)
    teacher = DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    student = DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    with torch.no_grad():  # a fresh teacher says the same everywhere: give it its own statistics, and a louder head
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        teacher.train()(torch.rand(2, 3, 64, 64))
        for branch in teacher.model[-1].cv3:
            branch[-1].weight.mul_(20)
            branch[-1].bias.fill_(-1)
    teacher.args = student.args = get_cfg(overrides={"imgsz": 64})
    model = DistillationModel(teacher, student).train()
    return model


def test_value_and_gradient_are_those_of_ultralytics(native: DistillationModel) -> None:
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.5]]),
        "batch_idx": torch.tensor([0.0, 1.0]),
    }
    total, items = native(batch)
    feats = [f.detach() for f in list(native._student_feats.values())[:3]]
    said = native._teacher_feats[3][1]
    assert said["scores"].sigmoid().amax(1).std() > 0.01
    loss = ScoreWeightedL2([f.shape[1] for f in feats], [f.shape[1] for f in said["feats"]])
    loss.load_state_dict({f"projector.{k}": v for k, v in native.projector.state_dict().items()})
    result = loss(
        Predictions(None, None, tuple(feats)), Predictions(said["scores"], None, tuple(said["feats"])), assignment()
    )
    assert native.dis == 6
    assert 6 * result.item() == pytest.approx(items["dis_loss"].item(), rel=1e-5)
    total.sum().backward()  # multiplied by the batch of 2, by `dis` and by nothing else
    result.backward()
    for ours, theirs in zip(loss.projector.parameters(), native.projector.parameters(), strict=True):
        torch.testing.assert_close(12 * ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_zero_where_the_projection_is_the_teacher() -> None:
    teacher = predictions(seed=1)
    loss = ScoreWeightedL2.for_pair(pair())
    adapted = tuple(p(f).detach() for p, f in zip(loss.projector, predictions().feats or (), strict=True))
    result = loss(predictions(), Predictions(teacher.scores, None, adapted), assignment())
    assert result.item() == pytest.approx(0, abs=1e-12)  # a convolution and a product of matrices differ in rounding


def test_a_teacher_that_sees_nothing_teaches_nothing() -> None:
    teacher = predictions(seed=1)
    student = predictions()
    loss = ScoreWeightedL2.for_pair(pair())
    result = loss(student, Predictions(torch.full((2, 2, ANCHORS), -1e4), None, teacher.feats), assignment())
    result.backward()
    assert result.item() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in loss.parameters())


def test_features_stay_as_they_are_and_half_precision_comes_out_as_float32() -> None:
    student, teacher = predictions(), predictions(seed=1)
    assert student.feats is not None
    before = [f.clone() for f in student.feats]
    loss = ScoreWeightedL2.for_pair(pair())
    full = loss(student, teacher, assignment())
    assert all(torch.equal(a, b) for a, b in zip(before, student.feats, strict=True))
    half = loss(Predictions(None, None, tuple(f.bfloat16() for f in student.feats)), teacher, assignment())
    assert half.dtype is torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


def test_doubled_batch_changes_nothing() -> None:
    student, teacher = predictions(), predictions(seed=1)
    twice = [
        Predictions(torch.cat([p.scores] * 2), None, tuple(torch.cat([f] * 2) for f in p.feats))
        for p in (student, teacher)
    ]
    loss = ScoreWeightedL2.for_pair(pair())
    assert loss(*twice, assignment()).item() == pytest.approx(loss(student, teacher, assignment()).item(), rel=1e-5)


def test_bad_arguments_are_named() -> None:
    loss, said = ScoreWeightedL2.for_pair(pair()), predictions()
    with pytest.raises(ValueError, match="sl2 needs the pyramid features"):
        loss(said, Predictions(None, None, said.feats), assignment())
    with pytest.raises(ValueError, match="against scores of shape"):
        loss(said, Predictions(torch.zeros(2, 2, 3), None, said.feats), assignment())
    with pytest.raises(ValueError, match="projected student level"):
        loss(said, predictions(widths=(4, 7)), assignment())
    with pytest.raises(ValueError, match="2 student levels against 1"):
        ScoreWeightedL2((1, 1), (1,))
