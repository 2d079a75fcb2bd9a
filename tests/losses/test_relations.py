from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assignment, pair, predictions
from yolokd.losses.relations import RelationalKD, SimilarityPreserving, relations
from yolokd.predictions import Assigned, Predictions


def images(*rows: tuple[float, ...]) -> Predictions:
    """A batch of images of one cell: its channels are the image's vector."""
    return Predictions(None, None, (torch.tensor(rows)[:, :, None, None],))


def objects(count: int) -> Assigned:
    """One object in each of ``count`` images, as large as the image of one cell of 8 px."""
    boxes = torch.tensor([[0.0, 0, 8, 8]]).expand(count, 4)
    return replace(assignment(count), gt_boxes=boxes, gt_image=torch.arange(count))


def leaf(said: Predictions) -> Predictions:
    assert said.feats is not None
    return replace(said, feats=tuple(f.detach().clone().requires_grad_() for f in said.feats))


def gradients(value: torch.Tensor, said: Predictions) -> list[torch.Tensor]:
    assert torch.isfinite(value)
    value.backward()
    found = [f.grad for f in said.feats or ()]
    assert all(g is not None and g.isfinite().all() for g in found)
    return [g for g in found if g is not None]


def test_similarity_by_hand() -> None:
    # Student: orthogonal images, table ((1, 0), (0, 1)). Teacher: equal images, rows (1, 1) / sqrt 2.
    # A row differs by (1 - 1 / sqrt 2)^2 + 1/2 = 2 - sqrt 2; two rows over four entries.
    value = SimilarityPreserving()(images((1, 0), (0, 1)), images((2, 0, 0), (2, 0, 0)), assignment())
    assert value.item() == pytest.approx((2 - 2**0.5) / 2, rel=1e-5)


@given(seed=st.integers(0, 1000), batch=st.integers(1, 4), scale=st.sampled_from([1e-2, 1.0, 50.0]))
@settings(max_examples=20, deadline=None)
def test_similarity_knows_no_scale(seed: int, batch: int, scale: float) -> None:
    student, teacher = predictions(batch, seed=seed), predictions(batch, seed=seed + 1, widths=(3, 9))
    loss = SimilarityPreserving.for_pair(pair(widths=(3, 9)))
    value = loss(student, teacher, assignment(batch)).item()
    assert 0 <= value <= 4 / batch
    assert student.feats is not None
    scaled = replace(student, feats=tuple(-scale * f for f in student.feats))
    assert loss(scaled, teacher, assignment(batch)).item() == pytest.approx(value, rel=1e-3, abs=1e-6)
    assert loss(scaled, student, assignment(batch)).item() == pytest.approx(0, abs=1e-6)


def test_levels_of_similarity_are_averaged() -> None:
    one, other = images((1, 0), (0, 1)), images((2, 0, 0), (2, 0, 0))
    assert one.feats is not None
    assert other.feats is not None
    both = (Predictions(None, None, one.feats * 2), Predictions(None, None, other.feats * 2))
    loss = SimilarityPreserving()
    assert loss(*both, assignment()).item() == pytest.approx(loss(one, other, assignment()).item())


@pytest.mark.parametrize("student", [images((1.0, 2.0)), images((0.0, 0.0), (0.0, 0.0))])
def test_similarity_of_one_image_or_of_nothing(student: Predictions) -> None:
    said, batch = leaf(student), len(student.feats[0])  # type: ignore[index]
    found = gradients(SimilarityPreserving()(said, images(*[(1.0, 3.0)] * batch), assignment(batch)), said)
    assert all(g.abs().max() < 1e-6 for g in found)


def test_similarity_refuses_what_it_cannot_compare() -> None:
    loss = SimilarityPreserving()
    with pytest.raises(ValueError, match="sp needs the pyramid"):
        loss(predictions(), Predictions(None, None, None), assignment())
    with pytest.raises(ValueError, match="2 student levels against 1"):
        loss(predictions(), images((1.0,), (1.0,)), assignment())
    with pytest.raises(ValueError, match="2 student images against 3"):
        loss(predictions(2), predictions(3), assignment())


# A right triangle of sides 3, 4 and 5, and one of equal sides.
RIGHT = ((0.0, 0.0), (3.0, 0.0), (0.0, 4.0))
EQUAL = ((0.0, 0.0), (1.0, 0.0), (0.5, 0.75**0.5))


def test_relations_by_hand() -> None:
    distance, angle = relations(torch.tensor(RIGHT))
    assert distance[0, 1].item() == pytest.approx(3 / 4)  # the mean is 4
    assert distance[2, 1].item() == pytest.approx(5 / 4)
    assert [angle[0, 1, 2].item(), angle[1, 0, 2].item(), angle[2, 1, 0].item()] == pytest.approx([0, 3 / 5, 4 / 5])
    assert angle[:, [0, 1, 2], [0, 1, 2]].abs().max() == 0
    assert angle[[0, 1, 2], [0, 1, 2]].abs().max() == 0


def test_relational_by_hand() -> None:
    # Sides 3/4, 1, 5/4 against 1, 1, 1: half the squares 1/16, 0, 1/16, mean of three.
    # Cosines 0, 3/5, 4/5 against 1/2: half the squares 1/4, 1/100, 9/100, mean of three.
    distance, angle = (1 / 16 + 1 / 16) / 6, (1 / 4 + 1 / 100 + 9 / 100) / 6
    student, teacher = images(*EQUAL), images(*RIGHT)
    strides = ((8,), (8,))
    assert RelationalKD(strides, 1, 0)(student, teacher, objects(3)).item() == pytest.approx(distance, rel=1e-3)
    assert RelationalKD(strides, 0, 1)(student, teacher, objects(3)).item() == pytest.approx(angle, rel=1e-3)
    assert RelationalKD(strides)(student, teacher, objects(3)).item() == pytest.approx(distance + 2 * angle, rel=1e-3)


def test_far_apart_is_counted_linearly() -> None:
    # Points A, B, C, two of them the same, A and B to the student, A and C to the teacher: AB 0 against 3/2, AC 3/2
    # against 0, BC 3/2 against 3/2. Above 1 Huber's loss is the difference less 1/2: 1, 1 and 0.
    student, teacher = images((0, 0), (0, 0), (1, 0)), images((0, 0), (1, 0), (0, 0))
    assert RelationalKD(((8,), (8,)), 1, 0)(student, teacher, objects(3)).item() == pytest.approx(2 / 3, rel=1e-4)


@given(seed=st.integers(0, 1000), count=st.integers(3, 6))
@settings(max_examples=15, deadline=None)
def test_rotation_shift_and_scale_do_not_matter(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=g)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g)).Q
    student, teacher = images(*x.tolist()), images(*(5 * x @ turn + 3).tolist())
    loss = RelationalKD(((8,), (8,)))
    assert loss(student, teacher, objects(count)).item() == pytest.approx(0, abs=1e-5)
    assert loss(student, images(*x.flip(1).cumsum(0).tolist()), objects(count)).item() >= 0


@pytest.mark.parametrize(("count", "learns"), [(0, False), (1, False), (2, False), (3, True)])
def test_few_objects(count: int, learns: bool) -> None:
    # Two objects have one distance, which is the mean of both networks.
    student = leaf(predictions(4))
    assigned = assignment(4)
    assigned = replace(assigned, gt_boxes=assigned.gt_boxes[:count], gt_image=assigned.gt_image[:count])
    value = RelationalKD.for_pair(pair())(student, predictions(4, seed=1), assigned)
    assert (value.item() > 1e-6) is learns
    found = gradients(value, student)
    assert bool(max(g.abs().max() for g in found) > 1e-5) is learns


@pytest.mark.parametrize("copies", [2, 5])
def test_identical_boxes(copies: int) -> None:
    assigned = assignment(1)
    assigned = replace(
        assigned, gt_boxes=assigned.gt_boxes.repeat(copies, 1), gt_image=assigned.gt_image.repeat(copies)
    )
    student = leaf(predictions(1))
    value = RelationalKD.for_pair(pair())(student, predictions(1, seed=1), assigned)
    assert value.item() == 0
    assert all(not g.any() for g in gradients(value, student))
    # Beside two others.
    boxes = torch.cat([assigned.gt_boxes, torch.tensor([[0.0, 0, 9, 9], [16, 2, 30, 12]])])
    assigned = replace(assigned, gt_boxes=boxes, gt_image=torch.zeros(copies + 2, dtype=torch.long))
    value = RelationalKD.for_pair(pair())(student, predictions(1, seed=1), assigned)
    assert value.item() > 0
    gradients(value, student)


def test_at_most_limit_objects_at_even_steps() -> None:
    # Of six objects the 1st, 3rd and 5th.
    student, teacher = images(*[(float(i), float(i * i)) for i in range(6)]), images(*[(2.0**i, 1.0) for i in range(6)])
    assigned = objects(6)
    chosen = replace(assigned, gt_boxes=assigned.gt_boxes[::2], gt_image=assigned.gt_image[::2])
    value = RelationalKD(((8,), (8,)), limit=3)(student, teacher, assigned).item()
    assert value == pytest.approx(RelationalKD(((8,), (8,)))(student, teacher, chosen).item(), rel=1e-4)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"rkd\.distance is -1"):
        RelationalKD.for_pair(pair(), distance=-1)
    with pytest.raises(ValueError, match=r"rkd\.angle is nan"):
        RelationalKD.for_pair(pair(), angle=float("nan"))
    with pytest.raises(ValueError, match=r"rkd\.angle is 0"):
        RelationalKD.for_pair(pair(), distance=0, angle=0)
    with pytest.raises(ValueError, match=r"rkd\.limit is 2"):
        RelationalKD.for_pair(pair(), limit=2)
    with pytest.raises(ValueError, match="rkd needs the pyramid"):
        RelationalKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())
