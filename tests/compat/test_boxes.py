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
