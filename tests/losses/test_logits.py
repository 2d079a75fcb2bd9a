import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import ANCHORS, assignment, pair, predictions
from yolokd.losses.logits import ClassificationKD, SoftmaxKD
from yolokd.matching import match_positives
from yolokd.predictions import Assigned, Predictions


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


def at_every_anchor(*logits: float, classes: torch.Tensor | None = None) -> Predictions:
    """One image with the same logits everywhere."""
    return Predictions(torch.tensor(logits).view(1, -1, 1).repeat(1, 1, ANCHORS), None, None, classes)


def test_softmax_by_hand() -> None:
    # T 2: logits (2 ln 3, 0) are (3/4, 1/4) against (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2 = 3/4 ln 3 - ln 2.
    # Anchors 5 and 17 count .8 each, Z is 1.6, T^2 is 4.
    teacher, assigned = at_every_anchor(2 * math.log(3), 0.0), assignment(1, foreground=(5, 17))
    value = SoftmaxKD(2.0)(at_every_anchor(0.0, 0.0), teacher, assigned)
    assert value.item() == pytest.approx(4 * (0.75 * math.log(3) - math.log(2)), rel=1e-5)
    half = replace(assigned, weight=torch.where(torch.arange(ANCHORS) == 5, assigned.weight, 0.0))
    assert SoftmaxKD(2.0)(at_every_anchor(0.0, 0.0), teacher, half).item() == pytest.approx(value.item() / 2)


def test_softmax_gradient_by_hand() -> None:
    # d/ds of T^2 KL is T (q - p): 2 * (1/2 - 3/4, 1/2 - 1/4), and Z is the one weight
    student = at_every_anchor(0.0, 0.0)
    assert student.scores is not None
    student.scores.requires_grad_()
    assigned = replace(assignment(1, foreground=(5,)), normalizer=torch.tensor(0.8))
    SoftmaxKD(2.0)(student, at_every_anchor(2 * math.log(3), 0.0), assigned).backward()
    assert student.scores.grad is not None
    assert student.scores.grad[0, :, 5].tolist() == pytest.approx([-0.5, 0.5])
    assert student.scores.grad.abs().sum() == pytest.approx(1.0)  # nothing at any other anchor


def test_hot_softmax_is_half_the_variance_of_the_difference() -> None:
    # Hinton et al., section 2.1: at a high temperature the logits, centred, are matched by squares.
    student, teacher = at_every_anchor(1.0, -2.0, 4.0), at_every_anchor(0.0, 3.0, -1.0)
    assigned = replace(assignment(1, foreground=(5,)), normalizer=torch.tensor(0.8))
    # differences 1, -5, 5 have the mean 1/3: (4 + 256 + 196) / 9 / 3 / 2 = 76 / 9
    assert SoftmaxKD(100.0)(student, teacher, assigned).item() == pytest.approx(76 / 9, rel=0.03)


def slow_softmax(student: np.ndarray, teacher: np.ndarray, assigned: Assigned, temperature: float) -> float:
    """The loss by loops: anchors with weight, classes of the teacher, softmax, KL, T^2, weighted sum, normaliser."""
    total = 0.0
    for b, a in assigned.weight.nonzero().tolist():
        p, q = (np.exp(x[b, :, a] / temperature) for x in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        total += float(assigned.weight[b, a]) * sum(i * math.log(i / j) for i, j in zip(p, q, strict=True))
    return total * temperature**2 / float(assigned.normalizer)


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    known=st.sets(st.integers(0, 4), min_size=1),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
@settings(max_examples=25, deadline=None)
def test_softmax_against_loops(seed: int, batch: int, known: set[int], temperature: float) -> None:
    classes = torch.tensor(sorted(known))
    student = predictions(batch, classes=5, seed=seed)
    teacher = replace(predictions(batch, classes=len(known), seed=seed + 1), classes=classes)
    assert student.scores is not None
    assert teacher.scores is not None
    assigned = assignment(batch, 5)
    expected = slow_softmax(student.scores[:, classes].numpy(), teacher.scores.numpy(), assigned, temperature)
    value = SoftmaxKD(temperature)(student, teacher, assigned).item()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert value >= -1e-5


def test_softmax_does_not_see_a_shift_of_the_logits() -> None:
    student, teacher = predictions(seed=1), predictions(seed=2)
    assert student.scores is not None
    assert teacher.scores is not None
    value = SoftmaxKD()(student, teacher, assignment()).item()
    shifted = replace(student, scores=student.scores + 3 * torch.randn(2, 1, ANCHORS))
    other = replace(teacher, scores=teacher.scores - 2 * torch.randn(2, 1, ANCHORS))
    assert SoftmaxKD()(shifted, other, assignment()).item() == pytest.approx(value, rel=1e-4)


def test_softmax_is_zero_with_zero_gradient_where_both_agree() -> None:
    student = predictions()
    assert student.scores is not None
    scores = student.scores.clone().requires_grad_()
    loss = SoftmaxKD()(replace(student, scores=scores), student, assignment())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("foreground", "classes"), [((5,), torch.tensor([2])), ((), torch.tensor([0, 2])), ((), torch.tensor([1]))]
)
def test_softmax_of_one_class_or_no_object_is_a_connected_zero(
    foreground: tuple[int, ...], classes: torch.Tensor
) -> None:
    scores = torch.randn(1, 3, ANCHORS, requires_grad=True)
    teacher = Predictions(torch.randn(1, len(classes), ANCHORS), None, None, classes)
    value = SoftmaxKD()(Predictions(scores, None, None), teacher, assignment(1, 3, foreground))
    value.backward()
    assert value.item() == 0
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0
    assert SoftmaxKD.min_classes == 2


def test_softmax_compares_the_mapped_classes_and_leaves_the_others_alone() -> None:
    student = at_every_anchor(3.0, 9.0, -3.0)
    assert student.scores is not None
    student.scores.requires_grad_()
    right = at_every_anchor(3.0, -3.0, classes=torch.tensor([0, 2]))
    wrong = at_every_anchor(3.0, -3.0, classes=torch.tensor([0, 1]))
    assert SoftmaxKD()(student, right, assignment(1, 3)).item() == pytest.approx(0, abs=1e-6)
    value = SoftmaxKD()(student, wrong, assignment(1, 3))
    value.backward()
    assert value.item() > 1
    assert student.scores.grad is not None
    assert student.scores.grad[:, 2].abs().sum() == 0


@pytest.mark.parametrize("loss", [ClassificationKD(), SoftmaxKD()])
def test_no_gradient_reaches_the_teacher(loss: ClassificationKD | SoftmaxKD) -> None:
    student, teacher = predictions(seed=1), predictions(seed=2)
    assert student.scores is not None
    assert teacher.scores is not None
    student.scores.requires_grad_()
    teacher.scores.requires_grad_()
    loss(student, teacher, assignment()).backward()
    assert student.scores.grad is not None
    assert student.scores.grad.abs().sum() > 0
    assert teacher.scores.grad is None


def test_softmax_counts_images_without_labels_by_the_teachers_weight() -> None:
    assigned = assignment(1, foreground=())
    assigned.weight[0, 3] = 0.5
    value = SoftmaxKD(2.0)(at_every_anchor(0.0, 0.0), at_every_anchor(2 * math.log(3), 0.0), assigned).item()
    assert value == pytest.approx(0.5 * 4 * (0.75 * math.log(3) - math.log(2)), rel=1e-5)


def test_softmax_in_half_precision_and_of_extreme_logits_is_finite_float32() -> None:
    student, teacher = at_every_anchor(-60000.0, 60000.0, 0.0), at_every_anchor(60000.0, -60000.0, 0.0)
    assert student.scores is not None
    assert teacher.scores is not None
    value = SoftmaxKD(0.5)(
        replace(student, scores=student.scores.half()), replace(teacher, scores=teacher.scores.half()), assignment(1, 3)
    )
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


def test_softmax_on_the_one_to_one_branch_teaches_the_answer_to_the_object() -> None:
    # The student answers at anchor 5, the teacher at anchor 10; only anchor 5 is taught, with the logits of anchor 10.
    scores = torch.zeros(1, 2, ANCHORS, requires_grad=True)
    theirs = torch.full((1, 2, ANCHORS), -9.0)
    theirs[0, :, 10] = torch.tensor([0.0, 2 * math.log(3)])
    boxes = torch.full((1, 4, ANCHORS), 0.1)
    boxes[0, :, 10] = torch.tensor([1.5, 1.5, 0.5, 0.5])
    matched = match_positives(
        Predictions(scores, torch.ones(1, 4, ANCHORS), None),
        Predictions(theirs, boxes, None),
        replace(assignment(1, foreground=(5,)), normalizer=torch.tensor(0.8)),
    )
    value = SoftmaxKD(2.0)(*matched)
    value.backward()
    assert value.item() == pytest.approx(4 * (0.75 * math.log(3) - math.log(2)), rel=1e-5)
    assert scores.grad is not None
    assert scores.grad.abs().sum((0, 1)).nonzero().flatten().tolist() == [5]


def test_softmax_says_nothing_where_the_teacher_has_no_detection() -> None:
    student, teacher = predictions(1), predictions(1, seed=1)
    assert student.scores is not None
    edges = torch.zeros(1, 4, ANCHORS, dtype=torch.bool)
    edges[0, 2, 6] = True  # of the objects at anchors 5, 6 and 17
    scores = student.scores.clone().requires_grad_()
    seen = assignment(1)
    value = SoftmaxKD()(replace(student, scores=scores), replace(teacher, edges=edges), seen)
    alone = replace(assignment(1, foreground=(6,)), normalizer=seen.normalizer)
    assert value.item() == pytest.approx(SoftmaxKD()(student, teacher, alone).item())
    value.backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum((0, 1)).nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_softmax_temperature_is_checked(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"kd\.temperature is"):
        SoftmaxKD.for_pair(pair(), temperature=temperature)


def test_softmax_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="kd needs the class logits"):
        SoftmaxKD()(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match=r"\(2, 2, 20\) against \(2, 3, 20\)"):
        SoftmaxKD()(predictions(), predictions(classes=3), assignment())
    with pytest.raises(ValueError, match=r"\(2, 1, 20\) against \(2, 2, 20\)"):
        SoftmaxKD()(predictions(), replace(predictions(), classes=torch.tensor([1])), assignment())
