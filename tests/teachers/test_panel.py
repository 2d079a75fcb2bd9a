from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ANCHORS, assignment, head, panel, predictions
from tests.lively import save_tiny_detr
from yolokd.classes import ClassMap
from yolokd.compat.checkpoint import head_info, load_detector
from yolokd.errors import UserError
from yolokd.layout import lay_out
from yolokd.levels import match_levels
from yolokd.predictions import HeadInfo, Predictions, SoftDetections
from yolokd.teachers.detr import DetrTeacher
from yolokd.teachers.itself import RunningTeacher
from yolokd.teachers.live import LiveTeacher
from yolokd.teachers.panel import STUDENT, Panel
from yolokd.teachers.view import View

BATCH = {"img": torch.zeros(2, 3, 32, 32)}


class Says:
    """A teacher that says what it was told and notes what it was asked."""

    def __init__(self, answer: Predictions, info: HeadInfo | None = None) -> None:
        self.info, self.name, self.answer = info or head(), "told", answer
        self.asked: list[dict[str, Any]] = []

    def __call__(self, batch: Any) -> Predictions:
        self.asked.append(dict(batch))
        return self.answer


def ask(them: Panel, student: Predictions | None = None) -> Predictions:
    assigned = assignment()
    return them(BATCH, student or predictions(seed=9), assigned.anchors, assigned.strides)


def several(*teachers: Says, weights: tuple[float, ...] = (0.5, 0.5)) -> Panel:
    views = [
        View(t, head(), ClassMap.by_name(t.info.names, head().names), match_levels(head(), t.info)) for t in teachers
    ]
    return Panel(views, weights)


def test_one_teacher_is_passed_through() -> None:
    answer, student = predictions(), predictions(seed=9)
    teacher = Says(answer)
    got = ask(panel(teacher, head()), student)
    assert got.scores is answer.scores
    assert got.boxes is answer.boxes
    assert got.members is None
    assert teacher.asked[0][STUDENT] is student  # for a teacher that looks at what the student says
    assert STUDENT not in BATCH


def test_several_are_averaged_and_keep_their_features() -> None:
    first, second = predictions(seed=1), predictions(widths=(7, 9), seed=2)
    got = ask(several(Says(first), Says(second, head(widths=(7, 9))), weights=(0.75, 0.25)))
    assert got.scores is not None
    assert got.members is not None
    mean = 0.75 * first.scores.sigmoid() + 0.25 * second.scores.sigmoid()  # type: ignore[union-attr]
    assert torch.allclose(got.scores.sigmoid(), mean, atol=1e-5)
    assert [m.feats for m in got.members] == [first.feats, second.feats]


def test_specialists_by_name() -> None:
    """c0 by the one, c1 by the other, whose class has another index."""
    one = Says(predictions(classes=1, seed=1), replace(head(), names={0: "c0"}))
    two = Says(predictions(classes=3, seed=2), replace(head(), names={0: "x", 1: "y", 2: "c1"}))
    got = ask(several(one, two))
    assert got.classes is None
    assert got.scores is not None
    assert torch.allclose(got.scores[:, 0], one.answer.scores[:, 0], atol=1e-4)  # type: ignore[index]
    assert torch.allclose(got.scores[:, 1], two.answer.scores[:, 2], atol=1e-4)  # type: ignore[index]


def detections(value: float = 0.9) -> SoftDetections:
    return SoftDetections(
        torch.tensor([[8.0, 8.0, 24.0, 24.0]]),
        torch.tensor([[value, 0.2]]),
        torch.tensor([0]),
        torch.ones(1, 4, dtype=torch.bool),
    )


def test_what_has_no_grid_is_laid_out_on_the_students() -> None:
    student, assigned = predictions(seed=9), assignment()
    info = replace(head(), strides=(), widths=())
    got = ask(panel(Says(Predictions(None, None, None, detections=detections()), info), head()), student)
    expected = lay_out(detections(), student, assigned.anchors, assigned.strides)
    assert got.detections is None
    for name in ("scores", "boxes", "edges"):
        assert torch.equal(getattr(got, name), getattr(expected, name))
    both = ask(several(Says(predictions()), Says(Predictions(None, None, None, detections=detections()), info)))
    assert both.scores is not None
    assert both.scores.shape == (2, 2, ANCHORS)
    assert both.edges is not None
    assert both.edges.all()  # the first has a word everywhere


@pytest.mark.parametrize("part", ["scores", "boxes"])
def test_nan_in_detections_is_named(part: str) -> None:
    broken = replace(detections(), **{part: getattr(detections(), part) * float("nan")})
    info = replace(head(), strides=(), widths=())
    with pytest.raises(UserError, match="teacher=told: its"):
        ask(panel(Says(Predictions(None, None, None, detections=broken), info), head()))


def test_the_first_answer_is_looked_at_of_every_teacher() -> None:
    sane, broken = predictions(), replace(predictions(), boxes=torch.full((2, 16, ANCHORS), float("inf")))
    with pytest.raises(UserError, match="teacher=told: its boxes"):
        ask(several(Says(sane), Says(broken)))
    them = several(Says(sane), Says(sane))
    ask(them)
    them.views[1].teacher = Says(broken)  # looking at each answer would cost time
    ask(them)


def test_no_gradient_and_no_way_back_to_the_student() -> None:
    scores = torch.randn(2, 2, ANCHORS, requires_grad=True)
    got = ask(several(Says(replace(predictions(), scores=scores)), Says(predictions())))
    assert got.scores is not None
    assert not got.scores.requires_grad


def test_levels_and_whole() -> None:
    assert panel(Says(predictions()), head()).whole
    finer = replace(head(), strides=(4, 8, 16), widths=(2, 4, 6))
    both = [Says(predictions()), Says(predictions(), finer)]
    them = several(*both)
    assert them.levels == (0, 1)
    assert not them.whole
    assert [pair.teacher.widths for pair in them.pairs()] == [(4, 6), (4, 6)]


def test_precision_and_compile_leave_out_what_cannot() -> None:
    class Convertible(Says):
        dtype = torch.float32

        def to_precision(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    able, unable = Convertible(predictions()), Says(predictions())
    them = several(able, unable)
    them.to_precision(torch.bfloat16)
    them.compile()
    assert able.dtype is torch.bfloat16
    assert them.beside(BATCH["img"]) == []


def test_the_memory_of_every_network_of_its_own_is_counted(toy_teacher: Path, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    student = head_info(load_detector(toy_teacher, role="teacher"))
    live = LiveTeacher(load_detector(toy_teacher, role="teacher"), cpu, "fp32")
    detr = DetrTeacher(load_detector(save_tiny_detr(tmp_path / "detr.pt"), role="teacher"), cpu, "fp32")
    for teacher in (live, detr):
        (said,) = panel(teacher, student, ratio=2.0).beside(torch.zeros(1, 3, 64, 64))
        assert said.feats is not None
        assert said.feats[0].shape[-2:] == (16, 16)


@pytest.mark.parametrize("field", ["scores", "boxes", "feats"])
def test_a_peer_that_is_not_finite_is_not_heard(field: str) -> None:
    """It is taken up again from its checkpoint; any other teacher is a file, which was looked at once."""
    answer = predictions()
    part = getattr(answer, field)
    spoilt = replace(answer, **{field: (part[0] * torch.nan, *part[1:]) if field == "feats" else part * torch.inf})
    for learns in (True, False):
        teacher = Says(answer)
        teacher.learns = learns  # type: ignore[attr-defined]
        them = panel(teacher, head())
        assert ask(them) is not None
        teacher.answer = spoilt
        assert (ask(them) is None) == learns
        teacher.answer = answer
        assert ask(them) is not None


def test_of_several_peers_one_is_enough_to_silence_the_step() -> None:
    one, two = Says(predictions(seed=1)), Says(predictions(seed=2))
    one.learns = two.learns = True  # type: ignore[attr-defined]
    them = several(one, two)
    assert ask(them) is not None
    two.answer = replace(two.answer, scores=two.answer.scores * torch.nan)  # type: ignore[operator]
    assert ask(them) is None


def test_only_a_peer_learns_beside_the_student() -> None:
    assert RunningTeacher(torch.nn.Identity, head(), "peer:a").learns
    assert not RunningTeacher(torch.nn.Identity, head(), "self").learns
