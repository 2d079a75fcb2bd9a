from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import ANCHORS, SIZES, assignment, head
from yolokd.compat.checkpoint import build_student, head_info
from yolokd.compat.taps import HeadTap, reentry
from yolokd.compat.training import branches, freeze
from yolokd.losses.crosskd import CrossHeadKD
from yolokd.predictions import Assigned, HeadInfo, Hidden, Pair, Predictions

BOX, CLS = 5, 3  # widths inside the teacher's head


def inside(box: int, cls: int, depths: int = 2) -> HeadInfo:
    return replace(head(), hidden=(((box, box), (cls, cls)),) * depths)


def pair() -> Pair:
    return Pair(inside(4, 6), inside(BOX, CLS))


def hidden(box: int = 4, cls: int = 6, batch: int = 2, seed: int = 0, sizes: Any = SIZES) -> Hidden:
    g = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        tuple(torch.randn(batch, width, *s, generator=g).requires_grad_() for s in sizes) for width in (box, cls)
    )


def door(reg_max: int = 4, classes: int = 2) -> tuple[Callable[[Hidden], Predictions], Tensor, Tensor]:
    """A head that ends in one fixed 1x1 convolution a branch."""
    g = torch.Generator().manual_seed(7)
    box, cls = (torch.randn(n, w, generator=g) for n, w in ((4 * reg_max, BOX), (classes, CLS)))

    def enter(features: Hidden) -> Predictions:
        boxes, scores = (
            torch.cat([torch.einsum("nc,bchw->bnhw", weight, f).flatten(2) for f in branch], 2)
            for weight, branch in zip((box, cls), features, strict=True)
        )
        # Without bins these are distances, and a trained head's are positive.
        return Predictions(scores, boxes if reg_max > 1 else boxes.exp(), None)

    return enter, box, cls


def teacher(reg_max: int = 4, batch: int = 2) -> Predictions:
    enter = door(reg_max)[0]
    return replace(enter(hidden(BOX, CLS, batch, seed=1)), reenter=enter)


def asked(features: Hidden | None) -> Predictions:
    """A student's predictions, of which only the hidden features count here."""
    return Predictions(None, None, None, hidden=features)


def built(seed: int = 0, **options: Any) -> CrossHeadKD:
    torch.manual_seed(seed)
    return CrossHeadKD.for_pair(pair(), **options)


def identity(box: int, cls: int, levels: int, **options: Any) -> CrossHeadKD:
    widths = ((box,) * levels, (cls,) * levels)
    loss = CrossHeadKD(widths, widths, **options)
    with torch.no_grad():
        for conv in (*loss.box_adapter, *loss.class_adapter):
            conv.weight.copy_(torch.eye(conv.out_channels)[..., None, None])
            conv.bias.zero_()
    return loss


def straight(features: Hidden) -> Predictions:
    """A head without anything left to do."""
    boxes, scores = (torch.cat([f.flatten(2) for f in branch], 2) for branch in features)
    return Predictions(scores, boxes, None)


def by_hand(anchors: int, logits: list[float], odds: list[float], boxes: float = 4.0) -> float:
    """One class, two bins. The student says 0 everywhere, the teacher ``logits``, and ``odds`` on the second bin."""
    loss = identity(8, 1, 1, boxes=boxes)
    features = (torch.zeros(1, 8, 1, anchors),), (torch.zeros(1, 1, 1, anchors),)
    bins = torch.tensor([[0.0, math.log(odd)] * 4 for odd in odds]).T[None]  # (1, 8, A)
    own = Predictions(torch.tensor(logits)[None, None], bins, None, reenter=straight)
    return float(loss(asked(features), own, one()).item())


def one() -> Assigned:
    """A normaliser of 1; the anchors of the helper are never looked at where there are bins."""
    return replace(assignment(), normalizer=torch.tensor(1.0))


def test_value_by_hand() -> None:
    # Classes: |1/2 - 3/4| * BCE(1/2, 3/4) = 1/4 ln 2. Edges: student even, teacher (1/4, 3/4):
    # KL = 3/4 ln 3 - ln 2, weighted 3/4 over max(3/4, 1), times 4.
    divergence = 0.75 * math.log(3) - math.log(2)
    value = by_hand(1, [math.log(3)], [3.0])
    assert value == pytest.approx(0.25 * math.log(2) + 4 * 0.75 * divergence, rel=1e-5)
    assert by_hand(1, [math.log(3)], [3.0], boxes=0) == pytest.approx(0.25 * math.log(2), rel=1e-5)


def test_boxes_count_by_the_teachers_class_probability() -> None:
    # weights 3/4 and 9/10, the second anchor's edges agree: 3/4 KL / 1.65; classes as above, (.9 - .5) ln 2 more
    divergence = 0.75 * math.log(3) - math.log(2)
    value = by_hand(2, [math.log(3), math.log(9)], [3.0, 1.0])
    assert value == pytest.approx((0.25 + 0.4) * math.log(2) + 4 * 0.75 * divergence / 1.65, rel=1e-5)


def test_without_bins_distances_and_overlaps_count_at_every_anchor() -> None:
    # All anchors of the helper; the student says 1 stride each way, the teacher 2 to the right and below:
    # L1 mean .5 over a mean side of 3, IoU 4 / 9, whatever the ground truth says (no gate). Class logits agree at 0.
    loss = identity(4, 1, 2, boxes=1.0)

    def features(values: list[float]) -> Hidden:
        box = tuple(torch.tensor(values).view(1, 4, 1, 1).expand(1, 4, *s).clone() for s in SIZES)
        return box, tuple(torch.zeros(1, 1, *s) for s in SIZES)

    own = replace(straight(features([1.0, 1.0, 2.0, 2.0])), reenter=straight)
    value = loss(asked(features([1.0] * 4)), own, assignment(1, classes=1))
    assert value.item() == pytest.approx(0.5 / 3 + 1 - 4 / 9, rel=1e-4)


@pytest.mark.parametrize("reg_max", [1, 4])
def test_zero_where_the_teachers_head_is_given_the_teachers_features(reg_max: int) -> None:
    features = hidden(BOX, CLS, seed=1)
    value = identity(BOX, CLS, 2)(asked(features), teacher(reg_max), assignment())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert value.item() > -1e-6
    if reg_max > 1:  # |distance| has no zero gradient there
        assert all(f.grad is not None and f.grad.abs().max() < 1e-5 for branch in features for f in branch)


def test_what_the_teachers_head_does_not_see_costs_nothing() -> None:
    # A head that looks at differences between neighbouring channels alone: any shift of all of them is free.
    def enter(features: Hidden) -> Predictions:
        said = straight(features)
        assert said.boxes is not None
        return replace(said, boxes=said.boxes - said.boxes.roll(1, 1))

    features = hidden(8, 2, seed=1)
    own = replace(enter(features), reenter=enter)
    loss = identity(8, 2, 2)
    with torch.no_grad():
        for conv in loss.box_adapter:
            conv.bias += 5  # type: ignore[operator]
    assert loss(asked(features), own, assignment()).item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        loss.box_adapter[0].bias[0] += 5  # type: ignore[index]
    assert loss(asked(features), own, assignment()).item() > 0.1


def test_gradient_reaches_student_and_adapters_and_nothing_else() -> None:
    loss, features = built(), hidden()
    own = teacher()
    assert own.scores is not None
    assert own.boxes is not None
    leaves = own.scores.detach().requires_grad_(), own.boxes.detach().requires_grad_()
    value = loss(asked(features), replace(own, scores=leaves[0], boxes=leaves[1]), assignment())
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() > 0
    assert all(f.grad is not None and f.grad.abs().max() > 0 for branch in features for f in branch)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
    assert len(list(loss.parameters())) == 8  # two branches, two levels, weight and bias
    assert all(leaf.grad is None for leaf in leaves)


def test_through_the_real_head_of_a_frozen_teacher() -> None:
    torch.manual_seed(0)
    names = {0: "a", 1: "b"}
    student = build_student("yolo11n.yaml", names=names).train()
    model = freeze(build_student("yolov8n.yaml", names=names))
    loss = CrossHeadKD.for_pair(Pair(head_info(student), head_info(model)))
    tap, images = HeadTap(student, loss.depth), torch.rand(2, 3, 64, 64)
    enter = reentry(model, torch.float32)
    with torch.no_grad():
        own = replace(branches(model(images))[0], reenter=lambda h: enter(h, loss.depth))
    student(images)
    loss(asked(tap.take()), own, assignment()).backward()
    assert all(p.grad is None for p in model.parameters())
    moved = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "model.0.conv.weight" in moved
    assert "model.23.cv2.0.0.conv.weight" in moved
    assert not any(name.startswith(("model.23.cv2.0.1", "model.23.cv2.0.2", "model.23.cv3.0.1")) for name in moved)


def test_what_it_asks_for_can_be_learnt() -> None:
    loss, features, own = built(), hidden(), teacher()
    optimizer = torch.optim.Adam([*loss.parameters(), *features[0], *features[1]], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(asked(features), own, assignment())
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


def test_doubling_the_batch_changes_nothing() -> None:
    loss, features, own = built(), hidden(batch=1), teacher(batch=1)
    value = loss(asked(features), own, assignment(1)).item()
    twice: Any = tuple(tuple(torch.cat([f, f]) for f in branch) for branch in features)
    assert own.scores is not None
    assert own.boxes is not None
    both = replace(own, scores=torch.cat([own.scores] * 2), boxes=torch.cat([own.boxes] * 2))
    assert loss(asked(twice), both, assignment(2)).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_float32_out(dtype: torch.dtype) -> None:
    loss, features, own = built(), hidden(), teacher()
    assert own.scores is not None
    assert own.boxes is not None
    low: Any = tuple(tuple(f.detach().to(dtype) for f in branch) for branch in features)
    value = loss(asked(low), replace(own, scores=own.scores.to(dtype), boxes=own.boxes.to(dtype)), assignment())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(asked(features), own, assignment()).item(), rel=0.05)


@pytest.mark.parametrize("reg_max", [1, 4])
@pytest.mark.parametrize("sure", [True, False])
def test_no_object_and_a_teacher_that_sees_nothing(reg_max: int, sure: bool) -> None:
    loss, features, own = built(), hidden(batch=1), teacher(reg_max, batch=1)
    assert own.scores is not None
    if not sure:
        own = replace(own, scores=torch.full_like(own.scores, -200.0))
    value = loss(asked(features), own, assignment(1, foreground=()))
    value.backward()
    assert torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loss.parameters())
    if not sure:  # nothing is to be learnt of boxes where there is nothing
        assert all(p.grad is not None and p.grad.abs().max() == 0 for p in loss.box_adapter.parameters())


def test_only_the_mapped_classes_of_the_teacher_are_compared() -> None:
    # The door's answer has their rows alone; `classes`, which picks rows of a student's scores, is not for it.
    loss, features, own = built(), hidden(), teacher()
    value = loss(asked(features), own, assignment())
    other = loss(asked(features), replace(own, classes=torch.tensor([3, 1])), assignment(classes=5))
    assert other.item() == pytest.approx(value.item())


def test_one_cell_and_one_class() -> None:
    loss = CrossHeadKD(((4,), (6,)), ((BOX,), (CLS,)))
    enter = door(classes=1)[0]
    own = replace(enter(hidden(BOX, CLS, 1, 1, ((1, 1),))), reenter=enter)
    value = loss(asked(hidden(batch=1, sizes=((1, 1),))), own, one())
    value.backward()
    assert torch.isfinite(value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 0}, r"crosskd\.depth is 0; it must be from 1 to 2"),
        ({"depth": 3}, r"crosskd\.depth is 3; it must be from 1 to 2"),
        ({"boxes": -1.0}, r"crosskd\.boxes is -1"),
        ({"boxes": math.nan}, r"crosskd\.boxes is nan"),
        ({"boxes": math.inf}, r"crosskd\.boxes is inf"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        built(**options)
    with pytest.raises(ValueError, match=r"crosskd\.depth is 0; it must be at least 1"):
        CrossHeadKD(((4,), (6,)), ((4,), (6,)), depth=0)


def test_heads_that_do_not_meet_are_named() -> None:
    open_head, shut = inside(4, 6), head()
    for roles, said in (((open_head, shut), "the teacher gives"), ((shut, open_head), "the student gives")):
        with pytest.raises(ValueError, match=said):
            CrossHeadKD.for_pair(Pair(*roles))
    with pytest.raises(ValueError, match="from 1 to 1 with this teacher"):
        CrossHeadKD.for_pair(Pair(open_head, inside(4, 6, depths=1)), depth=2)
    p2 = replace(open_head, strides=(4, 8, 16), hidden=(((4,) * 3, (6,) * 3),))
    with pytest.raises(ValueError, match="the student has 2 levels, the teacher 3"):
        CrossHeadKD.for_pair(Pair(open_head, p2))


def test_missing_inputs_are_named() -> None:
    own, loss = teacher(), built()
    with pytest.raises(ValueError, match="inside the student's head"):
        loss(asked(None), own, assignment())
    for missing in ({"reenter": None}, {"scores": None}, {"boxes": None}):
        with pytest.raises(ValueError, match="needs the teacher's head"):
            loss(asked(hidden()), replace(own, **missing), assignment())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from the teacher's head"):
        loss(asked(hidden()), replace(own, reenter=lambda _: Predictions(None, None, None)), assignment())
    with pytest.raises(ValueError, match=f"against \\(2, 16, {ANCHORS}\\)"):
        loss(asked(hidden(sizes=((4, 4), (1, 2)))), own, assignment())
