"""Teachers and losses as a training gets them, on real (random) networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import NAMES
from yolokd import seating
from yolokd.compat.checkpoint import build_student, head_info
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.seating import fit_losses, open_panel, teachers_device
from yolokd.teachers.elsewhere import Elsewhere, bare
from yolokd.teachers.live import LARGER, LiveTeacher
from yolokd.teachers.opening import NOBODY
from yolokd.teachers.panel import Panel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def student() -> Any:
    return build_student("yolo11n.yaml", names=NAMES)


def opened(student: Any, teacher: str, imgsz: int = 64, only: set[int] | None = None, **ours: Any) -> tuple[Panel, Any]:
    config = build_config({"teacher": teacher, **ours})
    info = head_info(student)
    panel = open_panel(config, info, CPU, network=lambda: student, peers=NOBODY, only=only, imgsz=imgsz)
    return panel, fit_losses(config, panel, student, 0)


def test_two_checkpoints(toy_teacher: Path, toy_student: Path, student: Any) -> None:
    panel, losses = opened(student, f"{toy_teacher}:red+blue,{toy_student}:green", teacher_weights="3,1")
    assert [view.class_map.pairs for view in panel.views] == [{0: (0,), 2: (2,)}, {1: (1,)}]
    assert panel.weights == (0.75, 0.25)
    assert len(losses["cwd"].each) == 2
    assert all(isinstance(v.teacher, LiveTeacher) and v.teacher.dtype == torch.float32 for v in panel.views)


def test_the_ratio_is_that_of_the_images_that_are_trained_with(toy_teacher: Path, student: Any) -> None:
    assert opened(student, str(toy_teacher), 64, teacher_imgsz=128)[0].views[0].match.ratio == 2
    # imgsz=100 becomes 128, of which 256 is twice as much
    assert opened(student, str(toy_teacher), 100, teacher_imgsz=256)[0].views[0].match.ratio == 2
    assert opened(student, str(toy_teacher), 100)[0].views[0].match.ratio == 1


def test_crosskd_needs_the_teachers_own_grid(toy_teacher: Path, student: Any) -> None:
    opened(student, str(toy_teacher), losses="crosskd")
    for size in (96, 128):  # three levels of the student meet three of the teacher's, but not in its head
        with pytest.raises(UserError, match="crosskd looks inside the teacher"):
            opened(student, str(toy_teacher), losses="crosskd", teacher_imgsz=size)


def test_taps_at_another_size(toy_teacher: Path, student: Any) -> None:
    """At twice the side the student's layer 4 (stride 8) sees what the teacher's layer 6 (stride 16) sees."""
    panel, losses = opened(student, str(toy_teacher), losses="cwd", taps="4:6,6:8", teacher_imgsz=128)
    assert [conv.out_channels for conv in losses["cwd"].adapter.levels] == [128, 256]
    said = panel.views[0]({"img": torch.zeros(1, 3, 64, 64), LARGER: torch.zeros(1, 3, 128, 128)})
    assert said.taps is not None
    assert [tuple(tap.shape[-2:]) for tap in said.taps] == [(8, 8), (4, 4)]
    with pytest.raises(UserError, match="in images 2 times as large"):
        opened(student, str(toy_teacher), losses="cwd", taps="4:4", teacher_imgsz=128)


@pytest.mark.parametrize(("teacher", "what"), [("self", "taps="), ("self:levels", "taps=")])
def test_taps_of_a_teacher_that_is_not_to_be_looked_into(student: Any, teacher: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        opened(student, teacher, losses="cwd", taps="4")


def test_crosskd_of_a_student_by_itself_is_refused(student: Any) -> None:
    with pytest.raises(UserError, match="crosskd looks inside the teacher, which teacher=self does not allow"):
        opened(student, "self", losses="crosskd")


def test_the_larger_image_is_the_teachers_alone(toy_teacher: Path, student: Any) -> None:
    """The answer to the larger image, level by level where the student's own levels lie."""
    panel, _ = opened(student, str(toy_teacher), losses="cls,box,cwd", teacher_imgsz=128)
    view = panel.views[0]
    g = torch.Generator().manual_seed(0)
    data = {"img": torch.zeros(2, 3, 64, 64), LARGER: torch.rand(2, 3, 128, 128, generator=g)}
    raw = view.teacher({"img": data[LARGER]})
    said = view(data)
    assert raw.scores is not None
    assert raw.feats is not None
    assert said.scores is not None
    assert said.boxes is not None
    assert said.feats is not None
    assert said.scores.shape == (2, 3, 84)
    assert said.boxes.shape == (2, 64, 84)
    assert torch.equal(said.feats[0], raw.feats[1])
    assert torch.equal(said.feats[1], raw.feats[2])
    assert torch.allclose(said.feats[2], raw.feats[2].view(2, -1, 2, 2, 2, 2).mean((3, 5)), atol=1e-5)
    assert torch.equal(said.scores[..., :64], raw.scores[..., 256:320].float())
    assert [tuple(p.teacher.widths) for p in panel.pairs()] == [(128, 256, 256)]


def test_without_classes_in_common_with_the_trained_ones(toy_teacher: Path, student: Any) -> None:
    panel, _ = opened(student, str(toy_teacher), only={1})
    assert panel.views[0].class_map.pairs == {1: (1,)}
    assert replace(panel.views[0].match, whole=True) == panel.views[0].match


def test_teachers_on_another_device(
    toy_teacher: Path, toy_student: Path, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taps, the head's door and two teachers; what they say is what they say where the student is."""
    text, keys = f"{toy_teacher},{toy_student}", {"losses": "cls,cwd,crosskd", "taps": "4:4"}
    plain, _ = opened(student, text, teacher_device="cpu", **keys)
    assert all(isinstance(view.teacher, LiveTeacher) for view in plain.views)  # that is where the student is
    monkeypatch.setattr(seating, "teachers_device", lambda config, device: torch.device("cpu", 0))
    there, _ = opened(student, text, **keys)
    assert all(isinstance(view.teacher, Elsewhere) for view in there.views)
    assert all(isinstance(bare(view.teacher), LiveTeacher) for view in there.views)
    data = {"img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
    there.begin(data)
    for one, other in zip(plain.views, there.views, strict=True):
        a, b = one(data), other(data)
        assert torch.equal(a.scores, b.scores)  # type: ignore[arg-type]
        assert torch.equal(a.taps[0], b.taps[0])  # type: ignore[index]
        assert b.reenter is not None


@pytest.mark.parametrize(
    ("asked", "student", "place"),
    [("", "cuda:1", "cuda:1"), ("cuda:1", "cuda:1", "cuda:1"), ("cuda:0", "cuda", "cuda"), ("cpu", "cuda:0", "cpu")],
)
def test_where_teachers_run(asked: str, student: str, place: str) -> None:
    config = build_config({"teacher": "t.pt", "teacher_device": asked})
    assert teachers_device(config, torch.device(student)) == torch.device(place)
