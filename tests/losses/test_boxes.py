import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import ANCHORS, assignment, pair, predictions
from yolokd.losses.boxes import BoxIoUKD, LocalizationKD
from yolokd.matching import match_positives
from yolokd.predictions import Assigned, Predictions


def boxes_of(distances: list[float], reg_max: int = 1) -> Predictions:
    """The same distances, in strides, at every anchor."""
    return Predictions(None, torch.tensor(distances).view(1, 4, 1).expand(1, 4, ANCHORS).clone(), None)


Box = tuple[float, float, float, float]


def by_loops(student: Predictions, teacher: Predictions, assigned: Assigned, term: Callable[..., float]) -> float:
    """A box loss by loops: softmax, expectation, IoU, gate, a term for each anchor, weight, sum, normaliser."""
    assert student.boxes is not None
    assert teacher.boxes is not None
    total, (batch, _, anchors) = 0.0, student.boxes.shape
    for b in range(batch):
        for a in range(anchors):
            weight = float(assigned.weight[b, a])
            if weight == 0:
                continue
            found: list[tuple[np.ndarray, Box]] = []
            for raw in (student.boxes.numpy(), teacher.boxes.numpy()):
                edges = raw[b, :, a].astype(float).reshape(4, -1)
                p = np.exp(edges) / np.exp(edges).sum(1, keepdims=True)
                bins = edges.shape[1]
                d = (edges[:, 0] if bins == 1 else (p * np.arange(bins)).sum(1)) * float(assigned.strides[a])
                x, y = assigned.anchors[a].tolist()
                found.append((p, (x - d[0], y - d[1], x + d[2], y + d[3])))
            (s, s_box), (t, t_box) = found
            truth = assigned.boxes[b, a].tolist()
            worse = overlap(t_box, truth)[0] < overlap(s_box, truth)[0]
            if worse and bool(assigned.foreground[b, a]):
                continue
            total += weight * term(s, t, s_box, t_box)
    return total / float(assigned.normalizer)


def overlap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """IoU and GIoU of two boxes, with Ultralytics' guard against a division by 0."""
    inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inside + 1e-7
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1])) + 1e-7
    return inside / union, inside / union - (around - union) / around


def divergence(s: np.ndarray, t: np.ndarray, s_box: Box, t_box: Box, temperature: float = 1.0) -> float:
    """KL of the softened bins, mean of the edges; s and t hold probabilities."""
    s, t = (p ** (1 / temperature) for p in (s, t))
    s, t = (p / p.sum(1, keepdims=True) for p in (s, t))
    return float((t * (np.log(t) - np.log(s))).sum()) / 4 * temperature**2


def varied(batch: int, seed: int) -> Assigned:
    """Every anchor with a weight and a truth of its own; a third of them counts, half of those without a truth."""
    g = torch.Generator().manual_seed(seed)
    assigned = assignment(batch)
    middle = assigned.anchors + 4 * torch.randn(batch, ANCHORS, 2, generator=g)
    half = 2 + 12 * torch.rand(batch, ANCHORS, 2, generator=g)
    weight = torch.rand(batch, ANCHORS, generator=g) * (torch.rand(batch, ANCHORS, generator=g) < 1 / 3)
    return replace(
        assigned,
        boxes=torch.cat([middle - half, middle + half], -1),
        foreground=torch.rand(batch, ANCHORS, generator=g) < 0.5,
        weight=weight,
        normalizer=weight.sum().clamp(min=1),
    )


@given(
    seed=st.integers(0, 10_000),
    reg_max=st.integers(2, 6),
    batch=st.integers(1, 3),
    temperature=st.sampled_from([1.0, 3.0]),
)
@settings(max_examples=25, deadline=None)
def test_against_loops(seed: int, reg_max: int, batch: int, temperature: float) -> None:
    student = predictions(batch, reg_max=reg_max, seed=seed)
    teacher = predictions(batch, reg_max=reg_max, seed=seed + 1)
    assigned = varied(batch, seed + 2)
    expected = by_loops(student, teacher, assigned, partial(divergence, temperature=temperature))
    value = LocalizationKD(temperature)(student, teacher, assigned).item()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(
    seed=st.integers(0, 10_000),
    bins=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 4])),
    batch=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_iou_against_loops(seed: int, bins: tuple[int, int], batch: int) -> None:
    student, teacher = (predictions(batch, reg_max=b, seed=seed + i) for i, b in enumerate(bins))
    if 1 in bins:  # plain distances: upright boxes only, the others have a test of their own
        assert student.boxes is not None
        assert teacher.boxes is not None
        student, teacher = (replace(p, boxes=p.boxes.abs()) for p in (student, teacher))  # type: ignore[union-attr]
    assigned = varied(batch, seed + 2)
    expected = by_loops(student, teacher, assigned, lambda s, t, s_box, t_box: 1 - overlap(s_box, t_box)[1])
    value = BoxIoUKD()(student, teacher, assigned).item()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert 0 <= value <= 2


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


@pytest.mark.parametrize("loss", [LocalizationKD(), BoxIoUKD()])
@pytest.mark.parametrize(("student", "counts"), [([1.0] * 4, False), ([3.0] * 4, True)])
def test_gate(loss: LocalizationKD | BoxIoUKD, student: list[float], counts: bool) -> None:
    # truth (8, 8, 24, 24), anchor (12, 12), stride 8, teacher (-4, -4, 28, 28): IoU 1/4.
    # student (4, 4, 20, 20): IoU 144/368, better, so the teacher is silent; (-12, -12, 36, 36): 1/9, worse.
    value = loss(boxes_of(student), boxes_of([2.0] * 4), one_anchor(False)).item()
    assert (value > 0) is counts


@pytest.mark.parametrize("loss", [LocalizationKD(), BoxIoUKD()])
def test_the_gate_passes_no_gradient_and_equal_boxes_are_zero(loss: LocalizationKD | BoxIoUKD) -> None:
    student = predictions()
    assert student.boxes is not None
    boxes = student.boxes.clone().requires_grad_()
    value = loss(replace(student, boxes=boxes), student, assignment())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert boxes.grad is not None
    assert boxes.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        # anchor (12, 12), stride 8, student 1 stride each way: (4, 4, 20, 20), area 256
        ([1.0, 1, 2, 2], 1 - 256 / 576),  # (4, 4, 28, 28) holds it: plain IoU
        ([0.0, 0, 2, 2], 1 - 64 / 448 + 128 / 576),  # (12, 12, 28, 28): union 448 in an enclosing 24 x 24
        ([-2.0, 1, 3, 1], 1 + 128 / 512),  # (28, 4, 36, 20), apart: union 384 in an enclosing 32 x 16
    ],
)
def test_iou_by_hand(teacher: list[float], expected: float) -> None:
    student = boxes_of([1.0] * 4)
    value = BoxIoUKD()(student, boxes_of(teacher), one_anchor(True)).item()
    assert value == pytest.approx(expected, rel=1e-5)
    assert BoxIoUKD()(boxes_of(teacher), student, one_anchor(True)).item() == pytest.approx(value, rel=1e-6)
    # weight .25, normaliser 2
    lighter = replace(one_anchor(True), weight=one_anchor(True).weight / 4, normalizer=torch.tensor(2.0))
    assert BoxIoUKD()(student, boxes_of(teacher), lighter).item() == pytest.approx(expected / 8, rel=1e-5)


def test_iou_is_by_the_share_of_the_box() -> None:
    small = BoxIoUKD()(boxes_of([1.0] * 4), boxes_of([1.0, 1, 2, 2]), one_anchor(True)).item()
    large = BoxIoUKD()(boxes_of([5.0] * 4), boxes_of([5.0, 5, 10, 10]), one_anchor(True)).item()
    assert large == pytest.approx(small, rel=1e-5)


def test_iou_pulls_a_box_towards_one_that_it_does_not_touch() -> None:
    # unlike 1 - IoU, whose gradient is 0 there
    student = torch.ones(1, 4, ANCHORS, requires_grad=True)
    BoxIoUKD()(Predictions(None, student, None), boxes_of([-2.0, 1, 3, 1]), one_anchor(True)).backward()
    assert student.grad is not None
    assert student.grad[0, 2, 5] < 0  # further to the right


@pytest.mark.parametrize("inside_out", [[-3.0, 1, -3, 1], [-3.0, -3, -3, -3], [0.0, 0, 0, 0]])
def test_iou_of_boxes_without_area_is_bounded_with_finite_gradients(inside_out: list[float]) -> None:
    for teacher in ([2.0] * 4, [0.0] * 4, inside_out):
        student = boxes_of(inside_out)
        assert student.boxes is not None
        student.boxes.requires_grad_()
        value = BoxIoUKD()(student, boxes_of(teacher), one_anchor(True))
        value.backward()
        assert 0 <= value.item() <= 2
        assert student.boxes.grad is not None
        assert torch.isfinite(student.boxes.grad).all()


@pytest.mark.parametrize("loss", [LocalizationKD(), BoxIoUKD()])
def test_without_objects_it_is_a_connected_zero_and_half_precision_gives_float32(
    loss: LocalizationKD | BoxIoUKD,
) -> None:
    student, teacher = predictions(1, seed=1), predictions(1, seed=2)
    assert student.boxes is not None
    assert teacher.boxes is not None
    boxes = student.boxes.half().requires_grad_()
    half = replace(teacher, boxes=teacher.boxes.half().requires_grad_())
    nothing = loss(replace(student, boxes=boxes), half, assignment(1, foreground=()))
    nothing.backward()
    assert nothing.item() == 0
    assert boxes.grad is not None
    assert boxes.grad.abs().sum() == 0
    value = loss(replace(student, boxes=boxes), half, one_anchor(True))
    value.backward()
    assert value.dtype == torch.float32
    assert boxes.grad.abs().sum() > 0
    assert half.boxes is not None
    assert half.boxes.grad is None


def test_iou_on_the_one_to_one_branch() -> None:
    # The student answers (8, 8, 24, 24) at anchor 5 (12, 12) with (4, 4, 20, 20); the teacher at anchor 10 (20, 20)
    # with (4, 4, 28, 28), which fits better (256 of 576 against 144 of 368).
    theirs = torch.full((1, 4, ANCHORS), 0.1)
    theirs[0, :, 10] = torch.tensor([2.0, 2, 1, 1])
    boxes = torch.ones(1, 4, ANCHORS, requires_grad=True)
    matched = match_positives(
        Predictions(torch.zeros(1, 2, ANCHORS), boxes, None),
        Predictions(None, theirs, None),
        replace(assignment(1, foreground=(5,)), normalizer=torch.tensor(0.8)),
    )
    value = BoxIoUKD()(*matched)
    value.backward()
    assert value.item() == pytest.approx(1 - 256 / 576, rel=1e-5)
    assert boxes.grad is not None
    assert boxes.grad.abs().sum((0, 1)).nonzero().flatten().tolist() == [5]


def test_iou_bad_arguments_are_named() -> None:
    loss = BoxIoUKD.for_pair(pair())
    with pytest.raises(ValueError, match="iou needs the box logits"):
        loss(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="against"):
        loss(predictions(), Predictions(None, torch.zeros(2, 16, 3), None), assignment())


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"box\.temperature is 0"):
        LocalizationKD(0)
    with pytest.raises(ValueError, match="needs the box logits"):
        LocalizationKD()(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="against"):
        LocalizationKD()(predictions(), Predictions(None, torch.zeros(2, 16, 3), None), assignment())


def with_edges(teacher: Predictions, *known: int) -> Predictions:
    """The teacher has a word on these edges of every anchor, and on no other."""
    edges = torch.zeros(1, 4, ANCHORS, dtype=torch.bool)
    edges[:, list(known)] = True
    return replace(teacher, edges=edges)


def test_box_averages_the_edges_that_the_teacher_has_a_word_on() -> None:
    student, teacher = predictions(1, seed=1), predictions(1, seed=2)
    at = one_anchor(True)
    assert student.boxes is not None
    assert teacher.boxes is not None
    s, t = (p.boxes[0, :, 5].view(4, 4).log_softmax(1) for p in (student, teacher))  # type: ignore[union-attr]
    each = (t.exp() * (t - s)).sum(1).tolist()
    for known in ((0,), (1, 3), (0, 1, 2, 3)):
        value = LocalizationKD()(student, with_edges(teacher, *known), at).item()
        assert value == pytest.approx(sum(each[i] for i in known) / len(known), rel=1e-5)
    assert LocalizationKD()(student, with_edges(teacher, 0, 1, 2, 3), at) == LocalizationKD()(student, teacher, at)


def test_box_without_common_bins_averages_the_distances_and_keeps_the_whole_box() -> None:
    student, teacher = boxes_of([1.0, 1, 1, 1]), boxes_of([2.0, 1, 1, 1.5])
    at = one_anchor(True)
    # Boxes of 2 x 2 and 3 x 2.5 strides: IoU 4 / 7.5; the mean side is 2.75.
    for known, distance in (((0, 1), 0.5), ((1, 2), 0.0), ((0, 1, 2, 3), 0.375)):
        value = LocalizationKD()(student, with_edges(teacher, *known), at).item()
        assert value == pytest.approx(distance / 2.75 + 1 - 4 / 7.5, rel=1e-4)


@pytest.mark.parametrize("loss", [LocalizationKD(), BoxIoUKD()])
@pytest.mark.parametrize("bins", [1, 4])
def test_where_the_teacher_has_no_word_on_any_edge_nothing_is_taught(
    loss: LocalizationKD | BoxIoUKD, bins: int
) -> None:
    student, teacher = predictions(1, reg_max=bins, seed=1), predictions(1, reg_max=bins, seed=2)
    assert student.boxes is not None
    student.boxes.requires_grad_()
    value = loss(student, with_edges(teacher), one_anchor(True))
    value.backward()
    assert value.item() == 0
    assert student.boxes.grad is not None
    assert student.boxes.grad.abs().sum() == 0


def test_iou_takes_the_whole_box_where_one_edge_is_known() -> None:
    student, teacher = predictions(1, seed=1), predictions(1, seed=2)
    at = one_anchor(True)
    whole = BoxIoUKD()(student, teacher, at)
    assert whole.item() > 0
    for known in ((0,), (1, 3), (0, 1, 2, 3)):
        assert BoxIoUKD()(student, with_edges(teacher, *known), at) == whole


def test_a_masked_edge_gets_no_gradient_from_the_bins() -> None:
    student, teacher = predictions(1, seed=1), predictions(1, seed=2)
    assert student.boxes is not None
    student.boxes.requires_grad_()
    LocalizationKD()(student, with_edges(teacher, 0, 2), one_anchor(True)).backward()
    assert student.boxes.grad is not None
    by_edge = student.boxes.grad[0, :, 5].view(4, 4).abs().sum(1)
    assert (by_edge > 0).tolist() == [True, False, True, False]
