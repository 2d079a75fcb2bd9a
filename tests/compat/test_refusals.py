from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
import ultralytics.nn.modules.head as ultralytics_heads
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils import IterableSimpleNamespace

from tests.lively import save_tiny_detr
from yolokd.compat.checkpoint import (
    build_student,
    load_detector,
)
from yolokd.compat.detr import is_detr
from yolokd.compat.refusals import refuse_wrong_kind
from yolokd.errors import UserError

OLD = tuple(int(part) for part in ultralytics.__version__.split(".")[:3]) < (8, 4, 190)


def refusal(call: Callable[[], Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ("yolo11n-cls.yaml", "a classifier"),
        ("yolo11n-obb.yaml", "a detector of oriented boxes"),
    ],
)
def test_other_tasks_are_refused_by_name(tmp_path: Path, cfg: str, said: str) -> None:
    model = YOLO(cfg).model
    torch.save({"model": model.half()}, tmp_path / "x.pt")
    for role in ("teacher", "student", "model"):
        error = refusal(lambda role=role: load_detector(tmp_path / "x.pt", role=role))
        assert said in error.problem
        assert f"The {role} must be" in error.remedy


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("Pose26", "a pose model"),
        ("WorldDetect", "a YOLO-World model"),
        ("YOLOESegment26", "a YOLOE model"),
        ("Mine", "a model with the head Mine, which yolokd does not know"),
    ],
)
def test_other_heads_are_refused_by_name(head: str, said: str) -> None:
    model = build_student("yolo11n.yaml", names={0: "a"})
    model.model[-1].__class__ = type(head, (nn.Module,), {})  # the real ones are large
    error = refusal(lambda: refuse_wrong_kind(model, "other.pt", "teacher"))
    assert error.problem == f"teacher=other.pt is {said}."
    assert error.remedy.endswith("or 26, or an RT-DETR.")


def test_an_rtdetr_may_teach_and_nothing_else(tmp_path: Path) -> None:
    file = save_tiny_detr(tmp_path / "detr.pt")
    assert is_detr(load_detector(file, role="teacher"))
    for role in ("student", "model"):
        error = refusal(lambda role=role: load_detector(file, role=role))
        assert error.problem == f"{role}={file} is an RT-DETR."
        assert "a detector of YOLOv8" in error.remedy
        assert "RT-DETR" not in error.remedy


def test_a_fused_rtdetr_may_teach(tmp_path: Path) -> None:
    model = load_detector(save_tiny_detr(tmp_path / "detr.pt"), role="teacher").fuse(verbose=False)
    refuse_wrong_kind(model, "detr.pt", "teacher")
    assert "is an RT-DETR" in refusal(lambda: refuse_wrong_kind(model, "detr.pt", "student")).problem


@pytest.mark.parametrize("head", ["RTDETRDecoder", "Pose26", "WorldDetect", "YOLOESegment26", "Segment26", "v10Detect"])
def test_the_heads_have_these_names_in_ultralytics(head: str) -> None:
    assert hasattr(ultralytics_heads, head)


@pytest.mark.skipif(OLD, reason="this Ultralytics cannot read such a file safely, and refuses it for that")
def test_an_unfinished_native_distillation_is_refused(tmp_path: Path, toy_student: Path, toy_teacher: Path) -> None:
    student = load_detector(toy_student, role="student")
    student.args = IterableSimpleNamespace(imgsz=64, dis=6.0)
    torch.save({"ema": DistillationModel(toy_teacher, student), "model": None}, tmp_path / "last.pt")
    error = refusal(lambda: load_detector(tmp_path / "last.pt", role="student"))
    assert "Ultralytics' own distillation" in error.problem
    assert "best.pt" in error.remedy


@pytest.mark.skipif(OLD, reason="this Ultralytics cannot read such a file safely, and refuses it for that")
def test_a_fused_student_is_refused_but_a_fused_teacher_serves(toy_student: Path, tmp_path: Path) -> None:
    model = load_detector(toy_student, role="student").fuse(verbose=False)
    torch.save({"model": model}, tmp_path / "fused.pt")
    assert load_detector(tmp_path / "fused.pt", role="teacher").is_fused()
    assert "fused" in refusal(lambda: load_detector(tmp_path / "fused.pt", role="student")).problem


def test_a_fused_end2end_teacher_lost_the_branch_that_teaches(tmp_path: Path) -> None:
    model = build_student("yolov10n.yaml")
    model.end2end = True
    model.fuse(verbose=False)
    torch.save({"model": model}, tmp_path / "fused.pt")
    assert "fused" in refusal(lambda: load_detector(tmp_path / "fused.pt", role="teacher")).problem


def damaged(kind: str, good: Path, folder: Path) -> Path:
    file = folder / f"{kind}.pt"
    if kind.startswith("truncated"):
        file.write_bytes(good.read_bytes()[: int(kind.split()[1])])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("hello there, this is no checkpoint")
    elif kind == "jpeg":
        file.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20)
    elif kind == "state_dict":
        torch.save({"conv.weight": torch.ones(3)}, file)
    elif kind == "tensor":
        torch.save(torch.ones(3), file)
    elif kind == "torchscript":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated 1000", "truncated or corrupted"),
        ("truncated 50000", "truncated or corrupted"),
        ("truncated 5000000", "truncated or corrupted"),
        ("empty", "is empty"),
        ("text", "not a PyTorch checkpoint"),
        ("jpeg", "not a PyTorch checkpoint"),
        ("state_dict", "holds no Ultralytics model"),
        ("tensor", "holds no Ultralytics model"),
        ("torchscript", "TorchScript"),
        ("missing", "no such file"),
    ],
)
def test_damage_is_said_in_words(
    tmp_path: Path, toy_student: Path, kind: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = damaged(kind, toy_student, tmp_path)
    error = refusal(lambda: load_detector(file, role="teacher"))
    assert said in error.problem
    assert error.problem.startswith(f"teacher={file}")
    assert capsys.readouterr().err == ""  # no comment of torch's beside ours
