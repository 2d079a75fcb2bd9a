import pickle
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from tests.conftest import NAMES
from tests.helpers import assignment, panel
from yolokd.balance import Balance
from yolokd.classes import ClassMap
from yolokd.compat.checkpoint import head_info
from yolokd.criterion import DistillationCriterion
from yolokd.errors import UserError
from yolokd.guard import Guard
from yolokd.losses.base import LOSSES, build_losses
from yolokd.predictions import Pair, Predictions
from yolokd.pseudo import weigh_unlabelled
from yolokd.schedule import Schedule
from yolokd.taps import StudentTaps, entry_depth, tapped_pair
from yolokd.teachers.live import LiveTeacher

GAINS = {"cls": 1.0, "box": 1.5, "cwd": 2.0}


def detector(cfg: str, seed: int, names: dict[int, str] = NAMES) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(cfg, nc=len(names), verbose=False)
    model.names, model.args = names, DEFAULT_CFG
    return model


def batch(labels: int = 3, images: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        "img": torch.rand(images, 3, 64, 64),
        "batch_idx": (torch.arange(labels) % images).sort().values,
        "cls": (torch.arange(labels) % 3).view(-1, 1).float(),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(labels, 1),
    }


def make(
    student: str = "yolo11n.yaml",
    teacher: str = "yolov8n.yaml",
    gains: dict[str, float] = GAINS,
    teacher_names: dict[int, str] = NAMES,
    share: float | None = None,
    taps: tuple[tuple[int, int], ...] = (),
    guard: int | None = None,
    **schedule: Any,
) -> tuple[DetectionModel, DistillationCriterion]:
    model = detector(student, 0)
    live = LiveTeacher(detector(teacher, 1, teacher_names), torch.device("cpu"), "fp32")
    pair = Pair(head_info(model), live.info)
    losses = build_losses(gains, {}, pair, 0, tapped_pair(pair, model, live.model, taps))
    classes = ClassMap.by_name(teacher_names, NAMES)
    plan = Schedule(**{"kind": "constant", "epochs": 10, "warmup": 0, **schedule})
    depth = entry_depth(losses)
    live.open([t for _, t in taps], depth)
    criterion = DistillationCriterion(
        *(model.init_criterion(), panel(live, head_info(model), classes), losses, (8, 16, 32), plan),
        Balance(share, gains),
        guard=Guard(guard),
        taps=StudentTaps(model, [s for s, _ in taps], depth),
    )
    model.criterion = criterion
    return model.train(), criterion


def test_detection_loss_is_untouched_and_terms_are_appended_times_batch_and_gain() -> None:
    model, criterion = make()
    data = batch()
    preds = model(data["img"])
    plain, plain_items = criterion.base(preds, data)
    total, items = criterion(preds, data)
    assert torch.equal(total[:3], plain)
    assert list(items) == [*plain_items, "kd_cls_loss", "kd_box_loss", "kd_cwd_loss"]
    for position, name in enumerate(GAINS):
        assert items[f"kd_{name}_loss"] > 0
        assert not items[f"kd_{name}_loss"].requires_grad
        assert total[3 + position].item() == pytest.approx(2 * items[f"kd_{name}_loss"].item())
    criterion.gains["cls"] = 3.0
    assert criterion(preds, data)[1]["kd_cls_loss"].item() == pytest.approx(3 * items["kd_cls_loss"].item())


def test_gradient_reaches_student_and_adapters_never_the_teacher() -> None:
    model, criterion = make()
    criterion(model(batch()["img"]), batch())[0][3:].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in criterion.losses.parameters())
    assert sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None) > 0
    assert all(p.grad is None and not p.requires_grad for p in criterion.teachers.views[0].teacher.model.parameters())  # type: ignore[attr-defined]


def test_nothing_of_it_is_in_the_student() -> None:
    model, criterion = make()
    before = len(model.state_dict())
    assert not isinstance(criterion, nn.Module)
    assert not [name for name, _ in model.named_modules() if "teacher" in name or "adapter" in name]
    copy = deepcopy(model)
    assert copy.criterion is None
    assert len(copy.state_dict()) == before
    assert pickle.loads(pickle.dumps(criterion)) is None


def test_other_attributes_are_those_of_the_students_criterion() -> None:
    _, criterion = make("yolo26n.yaml", "yolo26s.yaml", {"cls": 1.0})
    assert criterion.o2m == 0.8
    criterion.update()
    assert criterion.base.updates == 1
    assert not hasattr(make()[1], "update")
    with pytest.raises(AttributeError):
        _ = make()[1].no_such_thing


def test_the_teacher_rests_after_kd_close() -> None:
    model, criterion = make(close=9)
    asked: list[int] = []
    view = criterion.teachers.views[0]
    inner = view.teacher
    view.teacher = lambda data: (asked.append(1), inner(data))[1]  # type: ignore[assignment]
    view.teacher.name, view.teacher.info = "counted", inner.info  # type: ignore[misc]
    for epoch, times in ((0, 1), (1, 1)):
        criterion.begin_epoch(epoch, 1, criterion.schedule)
        _, items = criterion(model(batch()["img"]), batch())
        assert len(asked) == times
        assert (items["kd_cls_loss"].item() > 0) is (epoch == 0)


def test_the_ramp_moves_with_the_batches() -> None:
    model, criterion = make(warmup=2)
    criterion.begin_epoch(0, 2, criterion.schedule)
    preds = model(batch()["img"])
    values = [criterion(preds, batch())[1]["kd_cls_loss"].item() for _ in range(3)]
    assert values[0] == 0
    assert values[2] == pytest.approx(2 * values[1])


PAIRS = [
    ("yolo26n.yaml", "yolo26s.yaml"),
    ("yolo26n.yaml", "yolov8n.yaml"),
    ("yolo11n.yaml", "yolo26n.yaml"),
    ("yolov10n.yaml", "yolov8n.yaml"),
    ("yolov8n.yaml", "yolov10n.yaml"),
    ("yolo12n.yaml", "yolov9t.yaml"),
]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_families_teach_one_another(student: str, teacher: str) -> None:
    model, criterion = make(student, teacher)
    total, items = criterion(model(batch()["img"]), batch())
    total.sum().backward()
    assert all(torch.isfinite(value) for value in items.values())
    # The gate may close every anchor: with random weights the student's box can be the better one everywhere.
    assert items["kd_cls_loss"] > 0
    assert items["kd_box_loss"] >= 0
    assert items["kd_cwd_loss"] > 0
    assert all(p.grad is not None for p in criterion.losses.parameters())


def test_one2many_fades_with_the_detection_loss_and_one2one_rises() -> None:
    model, criterion = make("yolo26n.yaml", "yolov8n.yaml", {"cls": 1.0, "cwd": 1.0})
    preds = model(batch()["img"])
    parts = []
    for o2m in (1.0, 0.5, 0.0):
        criterion.base.o2m, criterion.base.o2o = o2m, 1 - o2m
        items = criterion(preds, batch())[1]
        parts.append((items["kd_cls_loss"].item(), items["kd_cwd_loss"].item()))
    assert parts[1][0] == pytest.approx((parts[0][0] + parts[2][0]) / 2)
    assert parts[2][0] > 0
    assert [p[1] for p in parts] == pytest.approx([parts[0][1], parts[0][1] / 2, 0])


def test_the_one2one_branch_is_taught_at_its_own_positives_only() -> None:
    model, criterion = make("yolo26n.yaml", "yolov8n.yaml", {"cls": 1.0})
    criterion.base.o2m, criterion.base.o2o = 0.0, 1.0
    preds = model(batch()["img"])
    scores = preds["one2one"]["scores"]
    scores.retain_grad()
    seen = []
    criterion.base.one2one.assigner.register_forward_hook(lambda module, args, output: seen.append(output[3]))
    total, _ = criterion(preds, batch())
    total[3:].sum().backward()
    touched = scores.grad.abs().sum(1) > 0  # (B, A)
    assert touched.any()
    assert torch.equal(touched, seen[0].bool())


@pytest.mark.parametrize("student", ["yolo11n.yaml", "yolo26n.yaml"])
def test_no_class_in_common_leaves_box_and_features_in_every_family(student: str) -> None:
    model, criterion = make(student, gains={"box": 1.0, "cwd": 1.0}, teacher_names={0: "x", 1: "y", 2: "z"})
    total, items = criterion(model(batch()["img"]), batch())
    total.sum().backward()
    assert items["kd_box_loss"] >= 0
    assert items["kd_cwd_loss"] > 0


def test_no_class_in_common_leaves_box_and_features() -> None:
    model, criterion = make(gains={"box": 1.0, "cwd": 1.0}, teacher_names={0: "x", 1: "y", 2: "z"})
    _, items = criterion(model(batch()["img"]), batch())
    assert items["kd_box_loss"] > 0
    assert items["kd_cwd_loss"] > 0


def test_autocast_does_not_reach_the_losses() -> None:
    model, criterion = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, items = criterion(model(batch()["img"]), batch())
    assert all(items[f"kd_{name}_loss"].dtype == torch.float32 for name in GAINS)


def test_a_batch_without_any_label() -> None:
    model, criterion = make()
    total, items = criterion(model(batch(0)["img"]), batch(0))
    assert torch.isfinite(total).all()
    assert items["kd_cls_loss"] > 0
    total.sum().backward()


def test_a_nan_teacher_is_named() -> None:
    model, criterion = make()
    live = criterion.teachers.views[0].teacher
    live.name = "broken.pt"
    live.model.model[0].conv.weight.data.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"teacher=broken\.pt: its class scores"):
        criterion(model(batch()["img"]), batch())


def test_unlabelled_images_are_weighed_by_the_teacher() -> None:
    assigned = assignment(2)
    assigned = replace(  # image 1 has no label
        assigned,
        gt_image=torch.tensor([0]),
        weight=assigned.weight * torch.tensor([[1.0], [0.0]]),
        normalizer=torch.tensor(0.8 * 3),
    )
    scores = torch.full((2, 2, 20), -9.0)
    scores[:, 0, 3] = 0.0  # sure to .5
    scores[:, 0, 4] = -1.2  # sure to .23: below the threshold
    weighed = weigh_unlabelled(assigned, Predictions(scores, None, None), 2)
    assert torch.equal(weighed.weight[0], assigned.weight[0])
    assert weighed.weight[1].nonzero().flatten().tolist() == [3]
    assert weighed.weight[1, 3].item() == pytest.approx(0.5)
    assert weighed.normalizer.item() == pytest.approx(0.8 * 3 + 0.5)
    # A level that is not taught keeps its part of the detection loss's normaliser.
    cut = replace(assigned, normalizer=torch.tensor(0.8 * 3 + 4))
    assert weigh_unlabelled(cut, Predictions(scores, None, None), 2).normalizer.item() == pytest.approx(2.4 + 4.5)


def test_every_loss_of_the_table_reaches_the_items_and_the_student() -> None:
    gains = {name: info.gain for name, info in LOSSES.items()}
    model, criterion = make(gains=gains)
    data = batch(6)
    # Boxes that differ: among equal ones there are no distances to learn.
    data["bboxes"] = torch.tensor([[0.3 + 0.07 * i, 0.6 - 0.05 * i, 0.2 + 0.05 * i, 0.4] for i in range(6)])
    total, items = criterion(model(data["img"]), data)
    assert {f"kd_{name}_loss" for name in LOSSES} <= set(items)
    assert items["kd_adv_accuracy"] > 0
    # From the detection loss on, a value a loss, in the table's order; each reaches the student's first layer.
    first = next(model.parameters())
    for position, name in enumerate(gains):
        (gradient,) = torch.autograd.grad(total[3 + position], first, retain_graph=True)
        # The teacher's box may be the worse one everywhere (random weights), and a fresh context block is the identity.
        assert gradient.abs().sum() > 0 or name in ("box", "iou"), name


def test_balance_sets_the_gradient_on_the_neck_to_the_share() -> None:
    model, criterion = make(gains={"cls": 1.0, "cwd": 1.0}, share=0.1)
    data = batch()
    preds = model(data["img"])
    criterion.begin_epoch(0, 4, criterion.schedule)
    total, _ = criterion(preds, data)
    norms = []
    for loss in (total[:3].sum(), total[3], total[4]):
        grads = torch.autograd.grad(loss, preds["feats"], retain_graph=True)
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
    assert [norms[1] / norms[0], norms[2] / norms[0]] == pytest.approx([0.1, 0.1], rel=1e-3)
    columns = criterion.balance.columns()
    assert columns["balance/cls_gain"] == criterion.gains["cls"] != 1.0
    assert columns["balance/cls_share"] == pytest.approx(0.1)
    assert -1 <= columns["balance/cwd_cosine"] <= 1


def test_fixed_gains_are_watched_and_a_term_that_dominates_is_named() -> None:
    model, criterion = make(gains={"cls": 1000.0})
    criterion.begin_epoch(0, 4, criterion.schedule)
    criterion(model(batch()["img"]), batch())
    assert criterion.gains == {"cls": 1000.0}
    (warning,) = criterion.end_epoch(0.5)
    assert "cls dominates" in warning
    assert criterion.end_epoch(0.5) == []


def test_nothing_is_measured_where_it_is_not_to_watch() -> None:
    model, criterion = make(gains={"cls": 1000.0})
    criterion.watch = False
    criterion.begin_epoch(0, 4, criterion.schedule)
    criterion(model(batch()["img"]), batch())
    assert criterion.end_epoch(0.5) == []
    assert criterion.balance.columns()["balance/cls_share"] == 0


def test_taps_compare_the_backbone_and_leave_the_neck_alone() -> None:
    model, criterion = make(gains={"cls": 1.0, "cwd": 1.0}, taps=((4, 4), (6, 6)))
    adapters = [tuple(conv.weight.shape[:2]) for conv in criterion.losses["cwd"].adapter.levels]
    assert adapters == [(64, 128), (128, 128)]  # YOLOv8n after layers 4 and 6, YOLO11n there
    criterion.begin_epoch(0, 4, criterion.schedule)
    total, _ = criterion(model(batch()["img"]), batch())
    layers = {i: next(p for n, p in model.named_parameters() if n.startswith(f"model.{i}.")) for i in (4, 6, 8, 16)}
    found = dict(zip(layers, torch.autograd.grad(total[4], list(layers.values()), allow_unused=True), strict=True))
    assert found[4].abs().sum() > 0
    assert found[6].abs().sum() > 0
    assert not any(found[layer] is not None and found[layer].any() for layer in (8, 16))
    # The share of the term is measured where it acts.
    assert criterion.balance.columns()["balance/cwd_share"] > 0


def test_crosskd_goes_through_the_teachers_head_into_the_students() -> None:
    model, criterion = make(gains={"crosskd": 1.0})
    criterion(model(batch()["img"]), batch())[0][3:].sum().backward()
    head = model.model[-1]
    assert head.cv2[0][0].conv.weight.grad.abs().sum() > 0
    assert head.cv3[0][0][0].conv.weight.grad.abs().sum() > 0
    assert not head.cv2[0][1].conv.weight.grad.any()  # behind the door it is the teacher's head that answers
    assert all(p.grad is None for p in criterion.teachers.views[0].teacher.model.parameters())  # type: ignore[attr-defined]


def test_crosskd_maps_the_classes_behind_the_door() -> None:
    shuffled = {0: "blue", 1: "dog", 2: "red"}
    model, criterion = make(gains={"crosskd": 1.0}, teacher_names=shuffled)
    seen: list[tuple[Any, ...]] = []
    criterion.losses["crosskd"].class_loss.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].scores, args[1].scores))
    )
    criterion(model(batch()["img"]), batch())
    cross, own = seen[0]
    assert cross.shape == own.shape == (2, 2, 84)  # red and blue


def test_the_guard_lets_the_teacher_rest() -> None:
    model, criterion = make(gains={"cls": 1.0}, guard=2)
    values = {0: (0.3, 4.0), 1: (0.2, 3.0), 2: (0.2, 2.0)}
    said = []
    for epoch, (fitness, value) in values.items():
        criterion.begin_epoch(epoch, 1, criterion.schedule)
        criterion(model(batch()["img"]), batch())
        criterion._sums["cls"] = torch.tensor(value)
        said += criterion.end_epoch(fitness)
    assert len([line for line in said if "Over-distillation" in line]) == 1
    state = criterion.state()
    items = []
    for epoch in (3, 8):
        criterion.begin_epoch(epoch, 1, criterion.schedule)
        items.append(criterion(model(batch()["img"]), batch())[1]["kd_cls_loss"].item())
    assert items[0] > 0
    assert items[1] == 0
    other = make(gains={"cls": 1.0}, guard=2)[1]
    other.load(state)
    assert other.guard.factor(8) == 0


def test_the_guard_does_not_count_the_ramp_nor_an_adversary() -> None:
    model, criterion = make(gains={"adv": 1.0}, guard=1)
    for epoch, fitness in ((0, 0.3), (1, 0.2), (2, 0.1)):
        criterion.begin_epoch(epoch, 1, criterion.schedule)
        criterion(model(batch()["img"]), batch())
        criterion._sums["adv"] = torch.tensor(1.0 - epoch / 4)
        assert not [line for line in criterion.end_epoch(fitness) if "Over-distillation" in line]
    ramped = make(gains={"cls": 1.0}, guard=1, warmup=3)[1]
    for epoch, fitness in ((0, 0.3), (1, 0.2), (2, 0.1)):
        ramped.begin_epoch(epoch, 1, ramped.schedule)
        ramped.epoch, ramped._sums, ramped._counted = epoch + 1.0, {"cls": torch.tensor(1.0 - epoch / 4)}, 1
        assert ramped.end_epoch(fitness) == []
    ramped.begin_epoch(3, 1, ramped.schedule)
    assert ramped.guard._best == 0  # the ramp's results are no best to compare with


def count_questions(criterion: DistillationCriterion) -> list[int]:
    """Let the first teacher note each time that it is asked."""
    asked: list[int] = []
    view = criterion.teachers.views[0]
    inner = view.teacher

    class Counted:
        info, name = inner.info, "counted"

        def __call__(self, data: Any) -> Predictions:
            asked.append(1)
            return inner(data)

    view.teacher = Counted()
    return asked


@pytest.mark.parametrize(("every", "batches", "epochs"), [(2, 4, 1), (3, 4, 3), (4, 1, 4), (2, 3, 2)])
def test_teacher_every_asks_seldom_and_the_mean_stays(every: int, batches: int, epochs: int) -> None:
    model, criterion = make(gains={"cls": 1.0, "adv": 1.0})
    data = batch(images=1, labels=2)
    preds = model(data["img"])
    criterion.watch = False
    full = criterion(preds, data)[1]
    criterion.every = every
    asked = count_questions(criterion)
    items, totals = [], []
    for epoch in range(epochs):
        criterion.begin_epoch(epoch, batches, criterion.schedule)
        for _ in range(batches):
            total, named = criterion(preds, data)
            items.append(named)
            totals.append(total)
    assert len(asked) == epochs * batches // every
    for name in ("kd_cls_loss", "kd_adv_loss"):
        mean = sum(float(named[name]) for named in items) / len(items)
        assert mean == pytest.approx(float(full[name]), rel=0.05), name  # adv standardises anew
    accuracy = sum(float(named["kd_adv_accuracy"]) for named in items) / len(items)
    assert accuracy == pytest.approx(float(full["kd_adv_accuracy"]), abs=0.05)
    for named, total in zip(items, totals, strict=True):
        assert (named["kd_cls_loss"] > 0) == (total[3] > 0)


def test_guard_and_balance_see_asked_steps_only() -> None:
    model, criterion = make(gains={"cls": 1.0})
    criterion.every = 2
    criterion.begin_epoch(0, 4, criterion.schedule)
    preds = model(batch()["img"])
    value = 0.0
    for _ in range(4):
        value = max(value, criterion(preds, batch())[1]["kd_cls_loss"].item())
    assert criterion._counted == 2
    # The guard's mean is that of the loss, not of what counts twice.
    assert float(criterion._sums["cls"]) / criterion._counted == pytest.approx(value / 2)
    share = criterion.balance.columns()["balance/cls_share"]
    every, other = make(gains={"cls": 1.0}), criterion.balance
    every[1].begin_epoch(0, 4, criterion.schedule)
    for _ in range(2):
        every[1](every[0](batch()["img"]), batch())
    assert share == pytest.approx(every[1].balance.columns()["balance/cls_share"], rel=1e-4)
    assert other.gains == {"cls": 1.0}


def test_the_teacher_rests_until_kd_start() -> None:
    model, criterion = make(gains={"cls": 1.0}, start=1)
    asked = count_questions(criterion)
    for epoch in (0, 1):
        criterion.begin_epoch(epoch, 1, criterion.schedule)
        items = criterion(model(batch()["img"]), batch())[1]
        assert (len(asked), items["kd_cls_loss"].item() > 0) == ((0, False), (1, True))[epoch]


P2 = {"student": "yolov8n-p2.yaml", "teacher": "yolov8n.yaml"}


def make_levels(
    student: str, teacher: str, gains: dict[str, float], taps: tuple[tuple[int, int], ...] = ()
) -> tuple[DetectionModel, DistillationCriterion]:
    """As `make`, through the panel that a training has, with strides of any pyramid."""
    from yolokd.config import DistillConfig
    from yolokd.seating import fit_losses
    from yolokd.teachers.opening import seat
    from yolokd.teachers.spec import TeacherSpec

    model = detector(student, 0)
    live = LiveTeacher(detector(teacher, 1), torch.device("cpu"), "fp32")
    info = head_info(model)
    seats = seat([TeacherSpec("t.pt")], [live], info, overrides={}, only=None, weights=(), ratio=1)
    losses = fit_losses(DistillConfig("t.pt", gains, taps=taps), seats, model, 0)
    criterion = DistillationCriterion(
        *(model.init_criterion(), seats, losses, info.strides, Schedule("constant", 10, 0)),
        Balance(None, gains),
        taps=StudentTaps(model, [s for s, _ in taps], entry_depth(losses)),
    )
    model.criterion = criterion
    return model.train(), criterion


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("yolov8n-p2.yaml", "yolov8n.yaml"),
        ("yolov8n.yaml", "yolov8n-p2.yaml"),
        ("yolov8n-p6.yaml", "yolov8n.yaml"),
        ("yolov8n-p2.yaml", "yolov8n-p6.yaml"),
    ],
)
def test_pyramids_of_other_levels_teach_at_the_shared_ones(student: str, teacher: str) -> None:
    gains = {name: info.gain for name, info in LOSSES.items() if name != "crosskd"}
    model, criterion = make_levels(student, teacher, gains)
    data = {**batch(6), "img": torch.rand(2, 3, 128, 128)}
    data["bboxes"] = torch.tensor([[0.3 + 0.07 * i, 0.6 - 0.05 * i, 0.2 + 0.05 * i, 0.4] for i in range(6)])
    total, items = criterion(model(data["img"]), data)
    total.sum().backward()
    for name in gains:
        assert torch.isfinite(items[f"kd_{name}_loss"]), name
        # With random weights all of an object's anchors may lie on P2, which is not taught.
        assert items[f"kd_{name}_loss"] > 0 or name in ("kd", "box", "iou"), name
    assert all(p.grad is not None for p in criterion.losses.parameters())


def test_a_level_that_is_not_shared_gets_no_gradient_and_changes_nothing_elsewhere() -> None:
    """The losses of a P2 student are those of the same student with P2 cut off by hand."""
    gains = {"cls": 1.0, "box": 1.0, "cwd": 1.0, "sl2": 1.0}
    model, criterion = make_levels(**P2, gains=gains)
    criterion.watch = False  # measuring would leave gradients of its own
    data = batch()
    preds = model(data["img"])
    total, items = criterion(preds, data)
    first = 16 * 16  # anchors of P2 at 64 px
    (scores,) = torch.autograd.grad(total[3:].sum(), preds["scores"], retain_graph=True)
    assert not scores[..., :first].any()
    assert scores[..., first:].any()
    # By hand: the teacher's own answer, the student's last 84 anchors, the assignment's as well.
    teacher = criterion.teachers.views[0].teacher(data)
    criterion.base(preds, data)
    sides = torch.tensor([16, 8, 4, 2])
    assigned = criterion._assigners[0].take(torch.tensor([4.0, 8.0, 16.0, 32.0]).repeat_interleave(sides**2))
    cut = {name: getattr(assigned, name)[:, first:] for name in ("labels", "boxes", "scores", "foreground", "gt_index")}
    here = replace(
        assigned,
        **cut,
        weight=assigned.weight[:, first:],
        anchors=assigned.anchors[first:],
        strides=assigned.strides[first:],
    )
    assert here.strides.tolist() == [8.0] * 64 + [16.0] * 16 + [32.0] * 4
    student = Predictions(preds["scores"][..., first:], preds["boxes"][..., first:], tuple(preds["feats"][1:]))
    for name in gains:
        expected = criterion.losses[name](student, teacher, here)
        assert items[f"kd_{name}_loss"].item() == pytest.approx(expected.item(), rel=1e-5), name


def test_crosskd_enters_an_ordinary_teacher_from_a_p2_student_and_is_refused_the_other_way() -> None:
    model, criterion = make_levels(**P2, gains={"crosskd": 1.0})
    total, items = criterion(model(batch()["img"]), batch())
    total[3:].sum().backward()
    assert items["kd_crosskd_loss"] > 0
    head = model.model[-1]
    finest = head.cv2[0][0].conv.weight.grad
    assert finest is None or not finest.any()
    assert head.cv2[1][0].conv.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="crosskd looks inside the teacher"):
        make_levels(P2["teacher"], P2["student"], {"crosskd": 1.0})


def test_taps_of_a_p2_student() -> None:
    model, criterion = make_levels(**P2, gains={"cls": 1.0, "cwd": 1.0}, taps=((4, 4), (6, 6)))
    total, items = criterion(model(batch()["img"]), batch())
    assert items["kd_cwd_loss"] > 0
    found = torch.autograd.grad(total[4], next(model.model[4].parameters()))
    assert found[0].abs().sum() > 0


def test_a_step_without_an_answer_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion = make(guard=3)
    criterion.begin_epoch(0, 2, criterion.schedule)
    preds = model(batch()["img"])
    taught, items = criterion(preds, batch())
    heard, means = criterion._counted, dict(criterion._sums)
    monkeypatch.setattr(type(criterion.teachers), "__call__", lambda *asked: None)
    total, silent = criterion(preds, batch())
    assert list(silent) == list(items)
    assert torch.equal(total[:3], taught[:3])
    assert total[3:].tolist() == [0, 0, 0] == [float(silent[f"kd_{name}_loss"]) for name in GAINS]
    assert (criterion._counted, criterion._sums) == (heard, means)  # the guard's mean is that of the others
