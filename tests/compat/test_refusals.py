"""Which heads may play which role."""

from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics import YOLO

from tests.lively import save_tiny_detr
from yolokd.compat.checkpoint import load_detector
from yolokd.compat.detr import is_detr
from yolokd.compat.refusals import refuse_wrapped
from yolokd.errors import UserError


def test_an_rtdetr_may_teach_and_nothing_else(tmp_path: Path) -> None:
    file = save_tiny_detr(tmp_path / "detr.pt")
    assert is_detr(load_detector(file, role="teacher"))
    for role in ("student", "model"):
        with pytest.raises(UserError) as caught:
            load_detector(file, role=role)
        assert caught.value.problem == f"{role}={file} is an RT-DETR."
        assert "a detector of YOLOv8" in caught.value.remedy
        assert "RT-DETR" not in caught.value.remedy


def test_a_fused_rtdetr_may_teach_a_fused_yolo_may_not_learn(tmp_path: Path, toy_student: Path) -> None:
    detr = load_detector(save_tiny_detr(tmp_path / "detr.pt"), role="teacher")
    detr.fuse(verbose=False)
    yolo = YOLO(toy_student)
    yolo.model.fuse(verbose=False)
    yolo.save(tmp_path / "fused.pt")
    with pytest.raises(UserError, match="was saved fused"):
        load_detector(tmp_path / "fused.pt", role="student")


@pytest.mark.parametrize(("cfg", "what"), [("yolo11n-cls.yaml", "a classifier"), ("yolo11n-pose.yaml", "a pose model")])
def test_a_teacher_of_another_task(tmp_path: Path, cfg: str, what: str) -> None:
    YOLO(cfg).save(tmp_path / "other.pt")
    with pytest.raises(UserError, match=what) as caught:
        load_detector(tmp_path / "other.pt", role="teacher")
    assert caught.value.remedy.endswith("or 26, or an RT-DETR.")


def test_a_wrapped_student() -> None:
    wrapped = type("DistillationModel", (YOLO("yolo11n.yaml").model.__class__,), {})("yolo11n.yaml", verbose=False)
    with pytest.raises(UserError, match="an unfinished run of Ultralytics' own distillation"):
        refuse_wrapped(wrapped, "last.pt", "student")
