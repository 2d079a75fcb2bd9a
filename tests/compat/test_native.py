from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from ultralytics.nn.distill_model import DistillationModel

from tests.lively import save_tiny_detr
from yolokd.compat import native
from yolokd.compat.checkpoint import load_detector
from yolokd.compat.native import bare_student, refuse_native_pair
from yolokd.errors import UserError


def test_the_student_in_ultralytics_wrapper(toy_teacher: Path, toy_student: Path) -> None:
    student = load_detector(toy_student, role="student")
    student.args = type("Args", (), {"imgsz": 64, "dis": 6.0})()
    wrapped = DistillationModel(str(toy_teacher), student)
    assert bare_student(wrapped) is student
    assert bare_student(student) is student
    assert bare_student(nn.parallel.DataParallel(wrapped)) is student


def test_a_pair_that_works(toy_teacher: Path, toy_student: Path) -> None:
    assert refuse_native_pair(toy_teacher, toy_student) is None  # type: ignore[func-returns-value]
    assert refuse_native_pair(toy_teacher, "yolo11n.yaml") is None  # type: ignore[func-returns-value]


def test_pairs_that_do_not(
    toy_teacher: Path, toy_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="the teacher has 3, the student 4"):
        refuse_native_pair(toy_teacher, "yolov8n-p6.yaml")
    with pytest.raises(UserError, match="is an RT-DETR"):
        refuse_native_pair(save_tiny_detr(tmp_path / "detr.pt"), toy_student)
    monkeypatch.setattr(native, "DEFAULT_CFG_DICT", {})
    with pytest.raises(UserError, match="has no distill_model="):
        refuse_native_pair(toy_teacher, toy_student)
