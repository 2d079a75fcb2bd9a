from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from tests.helpers import STRIDES, WIDTHS, assignment, pair, predictions
from yolokd.adapters import PyramidAdapter
from yolokd.losses.graph import GraphKD, edge_difference, mirrored, thin_out
from yolokd.predictions import Assigned, Predictions


def identity(*widths: int) -> PyramidAdapter:
    adapter = PyramidAdapter(widths, widths)
    for conv, width in zip(adapter.levels, widths, strict=True):
        conv.weight.data.copy_(torch.eye(width)[..., None, None])  # type: ignore[operator]
    return adapter


def objects(boxes: list[list[float]], image: list[int], batch: int = 2) -> Assigned:
    found = torch.tensor(boxes).view(-1, 4)
    return replace(assignment(batch), gt_boxes=found, gt_image=torch.tensor(image, dtype=torch.long))


def leaf(said: Predictions) -> Predictions:
    assert said.feats is not None
    return replace(said, feats=tuple(f.detach().clone().requires_grad_() for f in said.feats))


def test_nodes_by_hand() -> None:
    # Two images of one cell, one channel, an object in each: centred and scaled the student has 1 and -1, the teacher
    # -1 and 1. Each node differs by 4; mirrored the object lies on itself, and one node has no edge.
    student = Predictions(None, None, (torch.tensor([5.0, 3.0]).view(2, 1, 1, 1),))
    teacher = Predictions(None, None, (torch.tensor([0.0, 9.0]).view(2, 1, 1, 1),))
    assigned = objects([[0, 0, 8, 8], [0, 0, 8, 8]], [0, 1])
    loss = GraphKD(identity(1), ((8,), (8,)))
    assert loss(student, teacher, assigned).item() == pytest.approx(4, rel=1e-3)
    # An image without objects counts 0.
    assert loss(student, teacher, objects([[0, 0, 8, 8]], [1])).item() == pytest.approx(2, rel=1e-3)
    assert loss(student, student, assigned).item() == 0


def test_edges_by_hand() -> None:
    # Image 0: student's nodes are the same (cosine 1), the teacher's at a right angle (0). Image 1: one node.
    student = torch.tensor([[1.0, 1], [3, 0], [2, 2]])
    teacher = torch.tensor([[0.0, 4, 0], [1, 1, 1], [2, 0, 0]])
    assert edge_difference(student, teacher, torch.tensor([0, 1, 0]), 3).tolist() == pytest.approx([1, 0, 0])


def test_background_by_hand() -> None:
    # 32 x 32 px, an object in the upper left corner.
    boxes, image = mirrored(torch.tensor([[0.0, 2, 8, 10]]), torch.tensor([1]), (32, 32))
    assert boxes.tolist() == [[24, 2, 32, 10], [0, 22, 8, 30], [24, 22, 32, 30]]
    assert image.tolist() == [1, 1, 1]
    # A second one takes the upper right corner: both lose one; the first's image in another image loses nothing.
    two = torch.tensor([[0.0, 2, 8, 10], [24, 2, 32, 10]])
    assert len(mirrored(two, torch.tensor([1, 1]), (32, 32))[0]) == 4
    assert len(mirrored(two, torch.tensor([1, 0]), (32, 32))[0]) == 6
    # In the middle an object is its own image.
    assert len(mirrored(torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([0]), (32, 32))[0]) == 0


def slow(student: Predictions, teacher: Predictions, assigned: Assigned, batch: int, weight: np.ndarray) -> float:
    """The loss by loops over images, nodes and pairs; identity adapter, 32 x 32 px."""
    total = 0.0
    for b in range(batch):
        boxes = assigned.gt_boxes[assigned.gt_image == b].tolist()
        flips = [
            *([32 - x2, y1, 32 - x1, y2] for x1, y1, x2, y2 in boxes),
            *([x1, 32 - y2, x2, 32 - y1] for x1, y1, x2, y2 in boxes),
            *([32 - x2, 32 - y2, 32 - x1, 32 - y1] for x1, y1, x2, y2 in boxes),
        ]

        def common(a: list[float], c: list[float]) -> float:
            w, h = min(a[2], c[2]) - max(a[0], c[0]), min(a[3], c[3]) - max(a[1], c[1])
            return max(w, 0) * max(h, 0)

        ground = [f for f in flips if all(common(f, o) <= 0.3 * (f[2] - f[0]) * (f[3] - f[1]) for o in boxes)]
        nodes = boxes + ground
        if not nodes:
            continue
        sides = []
        for said in (student, teacher):
            levels = []
            for feat, stride in zip(said.feats or (), STRIDES, strict=True):
                mean = feat.mean((0, 2, 3), keepdim=True)
                scaled = (feat - mean) / (feat - mean).square().mean().sqrt()
                levels.append(roi_align(scaled[b : b + 1], [torch.tensor(nodes)], 1, 1 / stride, 4, True).flatten(1))
            sides.append([v.numpy() for v in levels])
        off = np.mean([((s - t) ** 2).mean(1) for s, t in zip(*sides, strict=True)], 0)
        s, t = (np.concatenate([v / np.sqrt(v.shape[1]) for v in side], 1) for side in sides)
        pairs = [
            (s[i] @ s[j] / np.linalg.norm(s[i]) / np.linalg.norm(s[j]))
            - (t[i] @ t[j] / np.linalg.norm(t[i]) / np.linalg.norm(t[j]))
            for i in range(len(nodes))
            for j in range(len(nodes))
            if i != j
        ]
        n = len(boxes)
        total += weight[0] * off[:n].mean()
        if ground:
            total += weight[1] * min(1, n / len(ground)) * off[n:].mean()
        total += weight[2] * np.mean(np.square(pairs)) if pairs else 0
    return total / batch


@given(seed=st.integers(0, 10_000), batch=st.integers(1, 3), count=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_against_loops(seed: int, batch: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=g) * 24
    boxes = torch.cat([low, low + 1 + torch.rand(count, 2, generator=g) * (31 - low)], 1)
    image = torch.randint(0, batch, (count,), generator=g)
    assigned = replace(assignment(batch), gt_boxes=boxes, gt_image=image)
    student, teacher = predictions(batch, seed=seed), predictions(batch, seed=seed + 1)
    weight = np.array([1.0, 2.0, 3.0])
    loss = GraphKD(identity(*WIDTHS), (STRIDES, STRIDES), *weight)
    expected = slow(student, teacher, assigned, batch, weight)
    assert loss(student, teacher, assigned).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_doubling_the_batch_changes_nothing() -> None:
    student, teacher = predictions(), predictions(seed=1)
    boxes: list[list[float]] = [[0, 0, 9, 9], [20, 2, 30, 12], [4, 14, 24, 30]]
    once, twice = objects(boxes, [0, 0, 1]), objects(boxes * 2, [0, 0, 1, 2, 2, 3], 4)
    doubled = [replace(p, feats=tuple(f.repeat(2, 1, 1, 1) for f in p.feats or ())) for p in (student, teacher)]
    loss = GraphKD.for_pair(pair())
    assert loss(*doubled, twice).item() == pytest.approx(loss(student, teacher, once).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("boxes", "image"),
    [
        ([], []),
        ([[0.0, 0, 8, 8]], [1]),
        ([[8.0, 8, 24, 24]], [0]),
        ([[2.0, 2, 9, 9]] * 3, [0, 0, 0]),
        ([[5.0, 5, 5, 5]], [0]),
        ([[0.0, 0, 32, 32], [1, 1, 9, 9]], [1, 1]),
    ],
    ids=["none", "one", "its own mirror image", "three the same", "a point", "all"],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_finite_and_learning_where_there_is_an_object(boxes: list[list[float]], image: list[int], batch: int) -> None:
    loss, student = GraphKD.for_pair(pair(widths=(3, 5))), leaf(predictions(batch))
    image = [min(i, batch - 1) for i in image]
    value = loss(student, predictions(batch, widths=(3, 5), seed=1), objects(boxes, image, batch))
    assert torch.isfinite(value)
    value.backward()
    for tensors in (student.feats or (), list(loss.parameters())):
        found = [t.grad for t in tensors]
        assert all(g is not None and g.isfinite().all() for g in found)
        assert any(g is not None and bool(g.any()) for g in found) is bool(boxes)


def test_at_most_limit_objects_of_an_image() -> None:
    boxes = torch.arange(7.0)[:, None].expand(7, 4)
    image = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    assert thin_out(boxes, image, 3)[0][:, 0].tolist() == [0, 2, 4, 6]
    assert thin_out(boxes, image, 6)[0][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert thin_out(boxes, image, 4)[1].tolist() == [0, 0, 0, 0, 1]


def test_bad_arguments_are_named() -> None:
    for option in ("nodes", "background", "edges"):
        with pytest.raises(ValueError, match=rf"graph\.{option} is -2"):
            GraphKD.for_pair(pair(), **{option: -2.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"graph\.nodes is 0"):
        GraphKD.for_pair(pair(), nodes=0, background=0, edges=0)
    with pytest.raises(ValueError, match=r"graph\.limit is 0"):
        GraphKD.for_pair(pair(), limit=0)
    with pytest.raises(ValueError, match="graph needs the pyramid"):
        GraphKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="adapted student nodes"):
        GraphKD.for_pair(pair())(predictions(), predictions(widths=(3, 5)), assignment())
