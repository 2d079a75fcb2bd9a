import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import assignment, predictions
from yolokd.losses.logits import ClassificationKD
from yolokd.predictions import Predictions


def test_value_by_hand() -> None:
    # one image, one class, two anchors: logits 0 and ln 3 against probabilities 0.8 and 0.75
    student = Predictions(torch.tensor([[[0.0, math.log(3)]]]), None, None)
    teacher = Predictions(torch.tensor([[[math.log(4), math.log(3)]]]), None, None)
    assigned = replace(assignment(1), normalizer=torch.tensor(2.0))
    # anchor 1: |.5 - .8| * ln 2; anchor 2: student == teacher, 0
    assert ClassificationKD()(student, teacher, assigned).item() == pytest.approx(0.3 * math.log(2) / 2)


def test_zero_with_zero_gradient_where_both_agree() -> None:
    student = predictions()
    assert student.scores is not None
    scores = student.scores.clone().requires_grad_()
    loss = ClassificationKD()(replace(student, scores=scores), student, assignment())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_modulator_is_differentiated() -> None:
    # d/ds [(p - sigma) * BCE] = -sigma' * BCE + (p - sigma) * (sigma - p), at s = 0, p = .8: -.25 ln 2 - .09
    logit = torch.zeros(1, 1, 1, requires_grad=True)
    teacher = Predictions(torch.full((1, 1, 1), math.log(4)), None, None)
    assigned = replace(assignment(1), normalizer=torch.tensor(1.0))
    ClassificationKD()(Predictions(logit, None, None), teacher, assigned).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(-0.25 * math.log(2) - 0.09)


def test_unmapped_student_classes_get_no_gradient() -> None:
    scores = torch.randn(2, 3, 20, requires_grad=True)
    teacher = Predictions(torch.randn(2, 2, 20), None, None, classes=torch.tensor([0, 2]))
    ClassificationKD()(Predictions(scores, None, None), teacher, assignment(classes=3)).backward()
    assert scores.grad is not None
    assert scores.grad[:, 1].abs().sum() == 0
    assert scores.grad[:, [0, 2]].abs().sum() > 0


def test_the_right_class_is_compared() -> None:
    teacher_scores = torch.tensor([3.0, -3.0]).view(1, 2, 1).expand(1, 2, 20)
    student = Predictions(torch.tensor([3.0, 9.0, -3.0]).view(1, 3, 1).expand(1, 3, 20), None, None)
    right = Predictions(teacher_scores, None, None, classes=torch.tensor([0, 2]))
    shifted = Predictions(teacher_scores, None, None, classes=torch.tensor([0, 1]))
    loss = ClassificationKD()
    assert loss(student, right, assignment(1, 3)).item() == pytest.approx(0, abs=1e-6)
    assert loss(student, shifted, assignment(1, 3)).item() > 1


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [((2, 2, 20), (2, 2, 19), "19"), ((2, 3, 20), (2, 2, 20), r"\(2, 3, 20\) against \(2, 2, 20\)")],
)
def test_shapes_that_differ_are_named(student: tuple[int, ...], teacher: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationKD()(
            Predictions(torch.zeros(student), None, None), Predictions(torch.zeros(teacher), None, None), assignment()
        )


def test_without_scores() -> None:
    with pytest.raises(ValueError, match="class logits"):
        ClassificationKD()(predictions(), Predictions(None, None, None), assignment())
