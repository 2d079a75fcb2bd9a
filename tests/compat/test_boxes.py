import pytest
import torch

from tests.helpers import SIZES, STRIDES, grid
from yolokd.compat.boxes import anchor_points, bins_of, decode, encode, expected_distances, iou


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


@pytest.mark.parametrize("reg_max", [1, 2, 4, 16])
def test_bins_hold_the_distance_that_is_read_off_them(reg_max: int) -> None:
    distances = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * (reg_max - 1)
    raw = bins_of(distances, reg_max)
    assert raw.shape == (50, 4 * reg_max)
    assert torch.isfinite(raw).all()
    assert torch.allclose(expected_distances(raw), distances, atol=1e-5)
    assert torch.allclose(bins_of(distances.view(5, 10, 4), reg_max), raw.view(5, 10, -1))


def test_bins_by_hand() -> None:
    raw = bins_of(torch.tensor([[0.0, 1.25, 3.0, 9.0]]), 4)
    mass = raw.view(4, 4).softmax(1)
    expected = [[1, 0, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1], [0, 0, 0, 1]]  # 9 is more than 4 bins can say
    assert torch.allclose(mass, torch.tensor(expected).float(), atol=1e-6)
    assert torch.allclose(bins_of(torch.tensor([[-2.0] * 4]), 4).view(4, 4).softmax(1)[:, 0], torch.ones(4), atol=1e-6)
    assert bins_of(torch.tensor([[-2.0] * 4]), 1).tolist() == [[-2.0] * 4]  # plain distances are what they are
