import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import ANCHORS, assignment, predictions
from yolokd.losses.boxes import LocalizationKD
from yolokd.predictions import Assigned, Predictions


def boxes_of(distances: list[float], reg_max: int = 1) -> Predictions:
    """The same distances, in strides, at every anchor."""
    return Predictions(None, torch.tensor(distances).view(1, 4, 1).expand(1, 4, ANCHORS).clone(), None)


def slow(student: np.ndarray, teacher: np.ndarray, assigned: Assigned) -> float:
    """The loss by loops: softmax, expectation, IoU, gate, KL, weight, sum, normaliser."""
    total, (batch, channels, anchors) = 0.0, student.shape
    bins = channels // 4
    for b in range(batch):
        for a in range(anchors):
            weight = float(assigned.weight[b, a])
            if weight == 0:
                continue
            found = []
            for raw in (student, teacher):
                edges = raw[b, :, a].reshape(4, bins)
                p = np.exp(edges) / np.exp(edges).sum(1, keepdims=True)
                d = (p * np.arange(bins)).sum(1) * float(assigned.strides[a])
                x, y = assigned.anchors[a].tolist()
                found.append((p, (x - d[0], y - d[1], x + d[2], y + d[3])))
            truth = assigned.boxes[b, a].tolist()
            overlaps = []
            for _, box in found:
                w = max(0, min(box[2], truth[2]) - max(box[0], truth[0]))
                h = max(0, min(box[3], truth[3]) - max(box[1], truth[1]))
                areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (box, truth)]
                overlaps.append(w * h / (sum(areas) - w * h + 1e-7))
            if overlaps[1] < overlaps[0] and bool(assigned.foreground[b, a]):
                continue
            (s, _), (t, _) = found
            total += weight * float((t * (np.log(t) - np.log(s))).sum()) / 4
    return total / float(assigned.normalizer)


@given(seed=st.integers(0, 10_000), reg_max=st.integers(2, 6), batch=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_against_loops(seed: int, reg_max: int, batch: int) -> None:
    student = predictions(batch, reg_max=reg_max, seed=seed)
    teacher = predictions(batch, reg_max=reg_max, seed=seed + 1)
    assigned = assignment(batch)
    assert student.boxes is not None
    assert teacher.boxes is not None
    expected = slow(student.boxes.numpy(), teacher.boxes.numpy(), assigned)
    assert LocalizationKD()(student, teacher, assigned).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def one_anchor(gate_open: bool) -> Assigned:
    """Weight only at anchor 5 (12, 12), stride 8; the truth is there, or the gate has nothing to judge by."""
    assigned = assignment(1, foreground=(5,))
    if gate_open:
        assigned = replace(assigned, foreground=torch.zeros_like(assigned.foreground))
    return replace(assigned, weight=(assigned.weight > 0).float(), normalizer=torch.tensor(1.0))


def test_divergence_by_hand() -> None:
    # reg_max 2: student even, teacher (1/4, 3/4) on every edge: KL = ln 2 - H = 3/4 ln 3 - ln 2
    student = Predictions(None, torch.zeros(1, 8, ANCHORS), None)
    edges = torch.tensor([0.0, math.log(3)]).repeat(4).view(1, 8, 1).expand(1, 8, ANCHORS)
    value = LocalizationKD()(student, Predictions(None, edges, None), one_anchor(True)).item()
    assert value == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-5)


def test_temperature_softens_and_rescales() -> None:
    student = Predictions(None, torch.zeros(1, 8, ANCHORS), None)
    edges = torch.tensor([0.0, 2 * math.log(3)]).repeat(4).view(1, 8, 1).expand(1, 8, ANCHORS)
    value = LocalizationKD(2.0)(student, Predictions(None, edges, None), one_anchor(True)).item()
    assert value == pytest.approx(4 * (0.75 * math.log(3) - math.log(2)), rel=1e-5)


def test_distances_by_hand_where_one_has_no_bins() -> None:
    # anchor (12, 12), stride 8. student 1 stride each way: (4, 4, 20, 20); teacher 2 to the right and below.
    student, teacher = boxes_of([1.0, 1, 1, 1]), boxes_of([1.0, 1, 2, 2])
    # L1 mean .5 strides over a mean side of 3 strides; IoU 256 / 576
    value = LocalizationKD()(student, teacher, one_anchor(True)).item()
    assert value == pytest.approx(0.5 / 3 + 1 - 256 / 576, rel=1e-4)


def test_other_bins_are_compared_by_distance() -> None:
    # 16 bins against plain distances: all mass in bin 2 is a distance of 2
    edges = torch.full((4, 16), -50.0)
    edges[:, 2] = 50
    student = Predictions(None, edges.view(1, 64, 1).expand(1, 64, ANCHORS), None)
    assert LocalizationKD()(student, boxes_of([2.0] * 4), one_anchor(True)).item() == pytest.approx(0, abs=1e-5)
    assert LocalizationKD()(student, boxes_of([3.0] * 4), one_anchor(True)).item() > 0.1


@pytest.mark.parametrize(("student", "counts"), [([1.0] * 4, False), ([3.0] * 4, True)])
def test_gate(student: list[float], counts: bool) -> None:
    # truth (8, 8, 24, 24), anchor (12, 12), stride 8, teacher (-4, -4, 28, 28): IoU 1/4.
    # student (4, 4, 20, 20): IoU 144/368, better, so the teacher is silent; (-12, -12, 36, 36): 1/9, worse.
    value = LocalizationKD()(boxes_of(student), boxes_of([2.0] * 4), one_anchor(False)).item()
    assert (value > 0) is counts


def test_the_gate_passes_no_gradient_and_equal_boxes_are_zero() -> None:
    student = predictions()
    assert student.boxes is not None
    boxes = student.boxes.clone().requires_grad_()
    value = LocalizationKD()(replace(student, boxes=boxes), student, assignment())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert boxes.grad is not None
    assert boxes.grad.abs().max() < 1e-6


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"box\.temperature is 0"):
        LocalizationKD(0)
    with pytest.raises(ValueError, match="needs the box logits"):
        LocalizationKD()(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="against"):
        LocalizationKD()(predictions(), Predictions(None, torch.zeros(2, 16, 3), None), assignment())
