"""A mean teacher that starts as the teacher and follows the student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import NAMES
from tests.helpers import panel
from tests.test_criterion import detector
from yolokd.compat.checkpoint import head_info
from yolokd.errors import UserError
from yolokd.teachers.itself import RunningTeacher
from yolokd.teachers.live import LARGER, LiveTeacher
from yolokd.teachers.mean import MeanPanel


def make(keep: float = 0.9, teachers: int = 1, cfg: str = "yolov8n.yaml") -> tuple[MeanPanel, Any]:
    student = detector("yolo11n.yaml", 0).eval()
    info = head_info(student)
    live = [LiveTeacher(detector(cfg, seed + 1), torch.device("cpu"), "fp32") for seed in range(teachers)]
    several = panel(live[0], info)
    for other in live[1:]:
        several.views += panel(other, info).views
    several.weights = (1 / teachers,) * teachers
    return MeanPanel(several, RunningTeacher(lambda: student, info, "average"), info, keep), student


IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_it_starts_as_the_teacher_and_ends_as_the_student() -> None:
    mean, student = make()
    batch = {"img": IMAGES}
    [first] = mean.ask(batch) or []
    teacher = mean.views[0](batch)
    assert mean.share == 0
    assert torch.equal(first.scores, teacher.scores)  # type: ignore[arg-type]
    mean.progress(7)
    assert mean.share == pytest.approx(1 - 0.9**7)
    [later] = mean.ask(batch) or []
    own = RunningTeacher(lambda: student, head_info(student), "own")(batch)
    expected = (1 - mean.share) * teacher.scores.sigmoid() + mean.share * own.scores.sigmoid()  # type: ignore[union-attr]
    torch.testing.assert_close(later.scores.sigmoid(), expected, rtol=1e-4, atol=2e-6)  # type: ignore[union-attr]
    mean.progress(1000)
    [last] = mean.ask(batch) or []
    torch.testing.assert_close(last.scores.sigmoid(), own.scores.sigmoid(), rtol=1e-4, atol=2e-6)  # type: ignore[union-attr]


def test_its_features_stay_the_teachers() -> None:
    mean, _ = make()
    mean.progress(5)
    [said] = mean.ask({"img": IMAGES}) or []
    theirs = mean.views[0]({"img": IMAGES})
    assert said.feats is not None
    assert theirs.feats is not None
    assert all(torch.equal(a, b) for a, b in zip(said.feats, theirs.feats, strict=True))
    assert said.members is None
    several, _ = make(teachers=2)
    several.progress(5)
    [both] = several.ask({"img": IMAGES}) or []
    assert both.members is not None
    assert len(both.members) == 2


def test_both_see_the_weak_view() -> None:
    mean, _ = make()
    mean.progress(5)
    [weak] = mean.ask({"img": torch.zeros_like(IMAGES), LARGER: IMAGES}) or []
    [same] = mean.ask({"img": IMAGES}) or []
    assert torch.equal(weak.scores, same.scores)  # type: ignore[arg-type]


def test_the_student_that_follows_is_neither_changed_nor_taught_through_it() -> None:
    mean, student = make()
    mean.progress(5)
    before = [p.clone() for p in student.parameters()]
    [said] = mean.ask({"img": IMAGES}) or []
    assert not said.scores.requires_grad  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert not student.training


def test_a_student_that_broke_is_not_followed() -> None:
    mean, student = make()
    mean.progress(5)
    for parameter in student.parameters():
        parameter.data.fill_(float("nan"))
    [said] = mean.ask({"img": IMAGES}) or []
    assert torch.equal(said.scores, mean.views[0]({"img": IMAGES}).scores)  # type: ignore[arg-type]


def test_a_teacher_of_another_kind_is_refused() -> None:
    student = detector("yolo11n.yaml", 0)
    info = head_info(student)
    bins = panel(LiveTeacher(detector("yolo26n.yaml", 1), torch.device("cpu"), "fp32"), info)
    running = RunningTeacher(lambda: student, info, "average")
    with pytest.raises(UserError, match="same strides and bins"):
        MeanPanel(bins, running, info)
    no_grid = panel(RunningTeacher(lambda: student, replace(info, names=NAMES), "peer:x"), info)
    with pytest.raises(UserError, match="domain=adapt"):
        MeanPanel(no_grid, running, info)
