import pytest
import torch

from tests.helpers import SIZES, STRIDES, grid
from yolokd.compat.boxes import anchor_points, decode, encode, expected_distances, iou


def test_grid() -> None:
    points, strides = anchor_points(tuple(torch.zeros(1, 3, *s) for s in SIZES), STRIDES)
    expected = grid()
    assert torch.equal(points, expected[0])
    assert torch.equal(strides, expected[1])
    assert points[1].tolist() == [12.0, 4.0]  # x first


def test_decode_by_hand_and_back() -> None:
    distances = torch.tensor([[1.0, 2, 3, 4]])
    anchors, strides = torch.tensor([[40.0, 80.0]]), torch.tensor([8.0])
    box = decode(distances, anchors, strides)
    assert box.tolist() == [[32.0, 64.0, 64.0, 112.0]]
    assert torch.equal(encode(box, anchors, strides), distances)


def test_expected_distances() -> None:
    edges = torch.full((1, 4, 4), -60.0)
    edges[0, 0, 3] = 60
    edges[0, 1, 0] = edges[0, 1, 2] = 60  # half 0, half 2
    edges[0, 2, 1] = edges[0, 3, 0] = 60
    assert expected_distances(edges.flatten(1))[0].tolist() == pytest.approx([3, 1, 1, 0])
    plain = torch.tensor([[1.0, -2, 3, 4]])
    assert expected_distances(plain) is plain


def test_iou() -> None:
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    assert iou(a, b).item() == pytest.approx(1 / 3)
    far = torch.tensor([[20.0, 0, 30, 10]])
    assert iou(a, far).item() == pytest.approx(0)


def test_generalized_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10]])
    # disjoint: union 200, enclosing box 30 x 10, so 0 - (300 - 200) / 300
    assert iou(a, torch.tensor([[20.0, 0, 30, 10]]), generalized=True).item() == pytest.approx(-1 / 3)
    # corner to corner: 25 of 175, enclosing box 15 x 15
    assert iou(a, torch.tensor([[5.0, 5, 15, 15]]), generalized=True).item() == pytest.approx(1 / 7 - 50 / 225)
    # one inside the other: the enclosing box is the union, so plain IoU
    assert iou(a, torch.tensor([[0.0, 0, 10, 5]]), generalized=True).item() == pytest.approx(0.5)


@pytest.mark.parametrize(("side", "expected", "off"), [(300.0, 1.0, 1e-6), (1.0, 1.0, 1e-6), (0.01, 0.999, 1e-4)])
def test_generalized_iou_of_equal_boxes(side: float, expected: float, off: float) -> None:
    # Ultralytics adds 1e-7 to areas: for a hundredth of a pixel, area 1e-4, a thousandth is missing
    box = torch.tensor([[3.0, 2.0, 3.0 + side, 2.0 + side]])
    assert iou(box, box, generalized=True).item() == pytest.approx(expected, abs=off)


def test_generalized_iou_without_area() -> None:
    point = torch.zeros(1, 4)
    assert iou(point, point, generalized=True).item() == pytest.approx(0)
    assert iou(point, point + 5, generalized=True).item() == pytest.approx(-1)
