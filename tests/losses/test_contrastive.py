import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import WIDTHS, assignment, pair, predictions
from yolokd.losses import contrastive
from yolokd.losses.contrastive import ContrastiveKD
from yolokd.losses.objects import embed_objects
from yolokd.predictions import Assigned, Predictions


def objects(boxes: list[list[float]], image: list[int]) -> Assigned:
    return replace(
        assignment(max(image, default=0) + 1),
        gt_boxes=torch.tensor(boxes).view(-1, 4),
        gt_labels=torch.zeros(len(boxes), dtype=torch.long),
        gt_image=torch.tensor(image, dtype=torch.long),
    )


def some_objects(count: int, batch: int, seed: int) -> Assigned:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 16
    boxes = torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=g) * 12], 1)
    return objects(boxes.tolist(), [i % batch for i in range(count)])


def direct(dim: int = 2, temperature: float = 1.0, memory: int = 8) -> ContrastiveKD:
    """One level of ``dim`` channels, both projections the identity."""
    loss = ContrastiveKD((dim,), (dim,), (8,), dim, temperature, memory)
    for linear in (loss.student, loss.teacher):
        linear.weight.data.copy_(torch.eye(dim))
        linear.bias.data.zero_()
    return loss


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object's embedding is the mean of its image, so that it can be reckoned on paper."""
    monkeypatch.setattr(contrastive, "embed_objects", lambda feats, _, image, __: feats[0].mean((2, 3))[image])


def images(*vectors: tuple[float, ...]) -> Predictions:
    """An image for each vector, which stands at every position."""
    return Predictions(None, None, (torch.tensor(vectors)[:, :, None, None].expand(-1, -1, 4, 4).clone(),))


BOX = [8.0, 8.0, 24.0, 24.0]
E1, E2 = (1.0, 0.0), (0.0, 1.0)


def test_value_by_hand(plain: None) -> None:
    # Two objects at right angles, student equal to teacher: similarity 1 to one's own, 0 to the other,
    # -ln(e / (e + 1)) = ln(1 + 1/e). Then the memory holds both, and each has its own vector there too:
    # the object, 1; the other in the batch, 0; the memory, 1 and 0: -ln(e / (2 e + 2)) = ln(2 + 2/e).
    loss = direct()
    both = objects([BOX, BOX], [0, 1])
    assert loss(images(E1, E2), images(E1, E2), both).item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)
    assert loss(images(E1, E2), images(E1, E2), both).item() == pytest.approx(math.log(2 + 2 / math.e), rel=1e-5)


def test_temperature_by_hand(plain: None) -> None:
    # The student points at the other: similarity 0 to its own, 1 to the other, over 0.5: ln(1 + e^2).
    loss = direct(temperature=0.5)
    value = loss(images(E2, E1), images(E1, E2), objects([BOX, BOX], [0, 1])).item()
    assert value == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


def test_nearly_nothing_where_views_agree_and_objects_differ(plain: None) -> None:
    value = direct(temperature=0.07)(images(E1, E2), images(E1, E2), objects([BOX, BOX], [0, 1])).item()
    assert 0 <= value < 1e-5


def slow(loss: ContrastiveKD, student: np.ndarray, teacher: np.ndarray, same: np.ndarray, queue: list) -> float:
    """InfoNCE by loops; ``queue`` holds the newest teacher vectors, oldest first, and is brought up to date."""
    projected = []
    for linear, rows in ((loss.student, student), (loss.teacher, teacher)):
        weight, bias = linear.weight.detach().numpy().astype(float), linear.bias.detach().numpy().astype(float)
        out = []
        for row in rows:
            v = [sum(w * x for w, x in zip(weight[d], row, strict=True)) + bias[d] for d in range(len(bias))]
            length = math.sqrt(sum(x * x for x in v))
            out.append([x / length for x in v])
        projected.append(out)
    s, t = projected
    total = 0.0
    for i in range(len(s)):
        others = [t[j] for j in range(len(t)) if j != i and not same[i, j]] + queue
        e = [math.exp(sum(a * b for a, b in zip(s[i], o, strict=True)) / loss.temperature) for o in [t[i], *others]]
        total -= math.log(e[0] / sum(e))
    queue.extend(t)
    del queue[: max(0, len(queue) - len(loss.memory))]
    return total / max(len(s), 1)


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    memory=st.integers(0, 7),
    temperature=st.sampled_from([0.07, 0.5]),
)
@settings(max_examples=25, deadline=None)
def test_against_loops_over_batches(seed: int, batch: int, counts: list[int], memory: int, temperature: float) -> None:
    """Also a memory smaller than one batch, one that goes round, none, and batches without objects."""
    torch.manual_seed(seed)
    loss = ContrastiveKD.for_pair(pair(widths=(5, 3)), dim=4, temperature=temperature, memory=memory)
    queue: list[list[float]] = []
    for step, count in enumerate(counts):
        student = predictions(batch, seed=seed + step)
        teacher = predictions(batch, widths=(5, 3), seed=seed + step + 99)
        assigned = some_objects(count, batch, seed + step)
        if count > 2:  # one object twice
            assigned.gt_boxes[-1], assigned.gt_image[-1] = assigned.gt_boxes[0], assigned.gt_image[0]
        place = (assigned.gt_boxes, assigned.gt_image, (8, 16))
        s, t = (embed_objects(p.feats or (), *place).numpy() for p in (student, teacher))
        same = np.eye(count, dtype=bool)
        if count > 2:
            same[0, -1] = same[-1, 0] = True
        expected = slow(loss, s, t, same, queue)
        assert loss(student, teacher, assigned).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    held = int(min(loss.written.item(), memory))
    assert held == len(queue)
    if queue:
        kept = sorted(map(tuple, loss.memory[:held].numpy().round(4).tolist()))
        assert np.allclose(kept, sorted(map(tuple, np.round(queue, 4).tolist())), atol=2e-4)


def test_one_object_twice_is_no_negative_of_itself(plain: None) -> None:
    once = direct()(images(E1, E2), images(E1, E2), objects([BOX, BOX], [0, 1])).item()
    thrice = direct()(images(E1, E2), images(E1, E2), objects([BOX, BOX, BOX, BOX], [0, 1, 0, 0])).item()
    # Three times image 0's with one other each, once image 1's with three others: ln(1 + 1/e) and ln(1 + 3/e).
    assert thrice == pytest.approx((3 * once + math.log(1 + 3 / math.e)) / 4, rel=1e-5)


def test_the_batch_is_remembered_after_its_loss_and_the_backward_pass_still_works(plain: None) -> None:
    loss = direct()
    both = objects([BOX, BOX], [0, 1])
    values = [loss(images(E1, E2), images(E2, E1), both) for _ in range(3)]
    assert values[0] < values[1] < values[2]
    sum(values).backward()  # type: ignore[union-attr]
    assert torch.equal(loss.memory[:2], torch.tensor([E2, E1]))
    assert not loss.memory.requires_grad


def test_the_oldest_goes_first(plain: None) -> None:
    loss = direct(memory=3)
    for vectors in ((E1, E1), (E2, E2)):
        loss(images(*vectors), images(*vectors), objects([BOX, BOX], [0, 1]))
    assert loss.written.item() == 4
    assert torch.equal(loss.memory, torch.tensor([E2, E1, E2]))


def test_memory_survives_a_checkpoint_and_copies_are_independent() -> None:
    loss = ContrastiveKD.for_pair(pair(), memory=4)
    loss(predictions(), predictions(seed=1), assignment())
    other = ContrastiveKD.for_pair(pair(), memory=4)
    other.load_state_dict(loss.state_dict())
    before = copy.deepcopy(loss)
    values = [m(predictions(seed=2), predictions(seed=3), assignment()).item() for m in (loss, other, before)]
    assert values[0] == values[1] == values[2]
    before(predictions(), predictions(), assignment())
    assert before.written.item() == loss.written.item() + 2


def gradients(loss: ContrastiveKD, batch: int, assigned: Assigned) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    student, teacher = predictions(batch), predictions(batch, seed=1)
    assert student.feats is not None
    assert teacher.feats is not None
    for f in (*student.feats, *teacher.feats):
        f.requires_grad_()
    value = loss(student, teacher, assigned)
    value.backward()
    assert all(f.grad is None for f in teacher.feats)
    return value.detach(), [x.grad for x in (*student.feats, *loss.parameters())]


def test_gradient_reaches_student_and_both_projections_but_not_the_teacher() -> None:
    _, found = gradients(ContrastiveKD.for_pair(pair()), 2, some_objects(5, 2, 0))
    assert all(g is not None and g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize("assigned", [objects([], []), objects([BOX], [0]), objects([BOX, BOX], [0, 0])])
def test_nothing_to_compare_with(assigned: Assigned) -> None:
    """No object, one, and one twice: zero, with a zero gradient for all (ranks must agree on who has a gradient)."""
    loss = ContrastiveKD.for_pair(pair())
    value, found = gradients(loss, 1, assigned)
    assert value.item() == 0
    assert all(g is not None and g.abs().max() == 0 for g in found)
    assert loss.written.item() == len(assigned.gt_boxes)


def test_without_objects_a_filled_memory_stays_as_it_is() -> None:
    loss = ContrastiveKD.for_pair(pair(), memory=4)
    loss(predictions(), predictions(seed=1), assignment())
    before = loss.memory.clone()
    value, found = gradients(loss, 1, objects([], []))
    assert value.item() == 0
    assert all(g is not None and g.abs().max() == 0 for g in found)
    assert torch.equal(loss.memory, before)


def test_one_object_is_compared_with_the_memory() -> None:
    loss = ContrastiveKD.for_pair(pair())
    loss(predictions(), predictions(seed=1), assignment())
    value, found = gradients(loss, 1, objects([[2.0, 4.0, 12.0, 20.0]], [0]))
    assert value > 0
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in found)


def test_features_of_zero_are_finite() -> None:
    loss = ContrastiveKD.for_pair(pair())
    nothing = tuple(torch.zeros(2, c, s, s, requires_grad=True) for c, s in zip(WIDTHS, (4, 2), strict=True))
    value = loss(Predictions(None, None, nothing), predictions(), some_objects(4, 2, 0))
    value.backward()
    assert value.isfinite()
    assert all(f.grad is not None and f.grad.isfinite().all() for f in nothing)


def test_half_precision_gives_float32() -> None:
    feats = predictions().feats
    assert feats is not None
    half = Predictions(None, None, tuple(f.bfloat16() for f in feats))
    assert ContrastiveKD.for_pair(pair())(half, half, assignment()).dtype == torch.float32


def test_bad_arguments_are_named() -> None:
    for option, value in (("dim", 1), ("temperature", 0.0), ("memory", -1)):
        with pytest.raises(ValueError, match=rf"crd\.{option} is {value}"):
            ContrastiveKD.for_pair(pair(), **{option: value})
    with pytest.raises(ValueError, match="needs the pyramid"):
        ContrastiveKD.for_pair(pair())(predictions(), Predictions(None, None, None), assignment())


def test_a_crowd_is_thinned_out_at_even_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(feats, boxes, image, strides):  # type: ignore[no-untyped-def]
        seen.append((boxes, image))
        return embed_objects(feats, boxes, image, strides)

    monkeypatch.setattr("yolokd.losses.contrastive.embed_objects", spy)
    crowd = replace(
        assignment(),
        gt_boxes=torch.tensor([[float(i), 0.0, i + 8.0, 8.0] for i in range(10)]),
        gt_labels=torch.zeros(10, dtype=torch.long),
        gt_image=torch.arange(10) // 5,
    )
    ContrastiveKD.for_pair(pair(), limit=4)(predictions(), predictions(seed=1), crowd)
    assert seen[0][0][:, 0].tolist() == [0, 2, 5, 7]
    assert seen[0][1].tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"crd\.limit is 0"):
        ContrastiveKD.for_pair(pair(), limit=0)
