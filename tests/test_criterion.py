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
from tests.helpers import assignment
from yolokd.classes import ClassMap
from yolokd.compat.checkpoint import head_info
from yolokd.criterion import DistillationCriterion, weigh_unlabelled
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES, build_losses
from yolokd.predictions import Pair, Predictions
from yolokd.schedule import Schedule
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
    **schedule: Any,
) -> tuple[DetectionModel, DistillationCriterion]:
    model = detector(student, 0)
    live = LiveTeacher(detector(teacher, 1, teacher_names), torch.device("cpu"), "fp32")
    losses = build_losses(gains, {}, Pair(head_info(model), live.info), 0)
    classes = ClassMap.by_name(teacher_names, NAMES)
    plan = Schedule(**{"kind": "constant", "epochs": 10, "warmup": 0, **schedule})
    criterion = DistillationCriterion(model.init_criterion(), live, losses, gains, classes, (8, 16, 32), plan)
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
    assert all(p.grad is None and not p.requires_grad for p in criterion.teacher.model.parameters())  # type: ignore[attr-defined]


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
    inner = criterion.teacher
    criterion.teacher = lambda data: (asked.append(1), inner(data))[1]  # type: ignore[assignment]
    criterion.teacher.name = "counted"  # type: ignore[misc]
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
    criterion.teacher.name = "broken.pt"
    criterion.teacher.model.model[0].conv.weight.data.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"teacher=broken\.pt: its class scores"):
        criterion(model(batch()["img"]), batch())


def test_unlabelled_images_are_weighed_by_the_teacher() -> None:
    assigned = assignment(2)
    assigned = replace(  # image 1 has no label
        assigned,
        gt_image=torch.tensor([0]),
        weight=assigned.weight * torch.tensor([[1.0], [0.0]]),
    )
    scores = torch.full((2, 2, 20), -9.0)
    scores[:, 0, 3] = 0.0  # sure to .5
    scores[:, 0, 4] = -1.2  # sure to .23: below the threshold
    weighed = weigh_unlabelled(assigned, Predictions(scores, None, None), 2)
    assert torch.equal(weighed.weight[0], assigned.weight[0])
    assert weighed.weight[1].nonzero().flatten().tolist() == [3]
    assert weighed.weight[1, 3].item() == pytest.approx(0.5)
    assert weighed.normalizer.item() == pytest.approx(0.8 * 3 + 0.5)


def test_every_loss_of_the_table_reaches_the_items() -> None:
    gains = {name: info.gain for name, info in LOSSES.items()}
    model, criterion = make(gains=gains)
    _, items = criterion(model(batch()["img"]), batch())
    assert {f"kd_{name}_loss" for name in LOSSES} <= set(items)
