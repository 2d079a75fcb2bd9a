from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from tests.conftest import NAMES, save_detector
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.preflight import Report, preflight, preflight_plain


def run(teacher: Any, student: Any, data: Any, ours: dict[str, Any] | None = None, **theirs: Any) -> Report:
    config = build_config({"teacher": str(teacher), **(ours or {})})
    return preflight(config, {"model": str(student), "data": str(data), "imgsz": 64, "device": "cpu", **theirs})


def refusal(*args: Any, **kwargs: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        run(*args, **kwargs)
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def test_randomness_and_the_folder_are_left_alone(
    toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    run(toy_teacher, toy_student, toy_data)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("layer", "said"), [("cv3", "class scores"), ("cv2", "boxes")])
def test_a_nan_teacher_is_named(
    toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path, layer: str, said: str
) -> None:
    model = YOLO(toy_teacher)
    with torch.no_grad():
        getattr(model.model.model[-1], layer)[1][-1].bias[0] = float("nan")
    model.save(tmp_path / "nan.pt")
    error = refusal(tmp_path / "nan.pt", toy_student, toy_data)
    assert error.problem == f"teacher={tmp_path / 'nan.pt'}: its {said} hold NaN or Inf on training images."


def test_the_student_takes_the_classes_of_the_data(toy_teacher: Path, toy_data: Path, tmp_path: Path) -> None:
    report = run(toy_teacher, "yolo11n.yaml", toy_data)
    assert report.pairs[0].student.names == NAMES
    assert not report.student_knows_data
    other = save_detector("yolo11n.yaml", tmp_path / "s.pt", {0: "cat"})
    assert not run(toy_teacher, other, toy_data).student_knows_data
    assert run(toy_teacher, other, toy_data, {"losses": "box"}, single_cls=True).pairs[0].student.names == {0: "item"}


def test_without_a_shared_class_only_the_losses_without_classes_run(
    toy_student: Path, toy_data: Path, tmp_path: Path
) -> None:
    teacher = save_detector("yolov8n.yaml", tmp_path / "t.pt", {0: "cat", 1: "dog"})
    assert "No class of the teacher (cat, dog)" in refusal(teacher, toy_student, toy_data).problem
    report = run(teacher, toy_student, toy_data, {"losses": "box,cwd"})
    assert report.lines[0] == "classes: 0 of 3 mapped; without a teacher: red, green, blue"
    assert run(teacher, toy_student, toy_data, {"class_map": "cat:red"}).class_maps[0].mapped == 1


def test_another_reg_max_is_only_a_note(toy_teacher: Path, toy_data: Path) -> None:
    note = "reg_max: 1 (student), 16 (teacher): boxes are compared by expected distance and IoU"
    assert note in run(toy_teacher, "yolo26n.yaml", toy_data).lines


def test_the_same_file_twice_is_a_warning(toy_teacher: Path, toy_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(toy_teacher.read_bytes())
    for student in (toy_teacher, copy):
        report = run(toy_teacher, student, toy_data)
        assert "same file" in report.warnings[0]
        assert report.lines[-1] == f"WARNING: {report.warnings[0]}"


def test_files_and_data_are_checked(toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path) -> None:
    assert "student= is missing" in refusal(toy_teacher, "", toy_data).problem
    assert "no such file" in refusal(toy_teacher, tmp_path / "no.pt", toy_data).problem
    assert "no such file" in refusal(toy_teacher, toy_student, tmp_path / "no.yaml").problem
    assert "pretrained=" in refusal(toy_teacher, toy_student, toy_data, pretrained=str(tmp_path / "no.pt")).problem
    assert "imgsz=big" in refusal(toy_teacher, toy_student, toy_data, imgsz="big").problem


def test_a_plain_run_is_checked_too(toy_student: Path, toy_data: Path, tmp_path: Path) -> None:
    config = build_config({"losses": "none"})
    preflight_plain(config, {"model": str(toy_student), "data": str(toy_data)})
    (tmp_path / "bad.pt").write_text("this is no checkpoint")
    for key in ("model", "pretrained"):
        with pytest.raises(UserError, match="not a PyTorch checkpoint"):
            preflight_plain(config, {"model": str(toy_student), "data": str(toy_data), key: str(tmp_path / "bad.pt")})
    with pytest.raises(UserError, match="data= is missing"):
        preflight_plain(config, {"model": str(toy_student)})


def test_what_the_losses_need_is_asked_before_files_are_read() -> None:
    config = build_config({"teacher": "nowhere.pt", "losses": "sp"})
    with pytest.raises(UserError, match="The loss sp compares the images of a batch"):
        preflight(config, {"model": "nowhere.pt", "data": "nowhere.yaml", "batch": 1})


def test_layers_are_looked_up_and_their_adapters_counted(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    ours = {"losses": "cls,cwd", "taps": "4:4,6:6,10:9", "balance": 0.1}
    report = run(toy_teacher, toy_student, toy_data, ours)
    assert report.adapter_parameters == 128 * 64 + 128 * 128 + 256 * 256
    assert report.pairs[0].student.widths == (64, 128, 256)  # the report is about the heads
    assert "taps=4:6: layer 4" in refusal(toy_teacher, toy_student, toy_data, {"taps": "4:6"}).problem


def test_the_teachers_head_is_entered_in_the_trial(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    report = run(toy_teacher, toy_student, toy_data, {"losses": "cls,crosskd"})
    # 64 channels in every branch of both heads; these convolutions have a bias
    assert report.adapter_parameters == 2 * 3 * (64 * 64 + 64)
    wrong = refusal(toy_teacher, toy_student, toy_data, {"losses": "crosskd", "crosskd.depth": 3})
    assert wrong.problem == "crosskd.depth is 3; it must be from 1 to 2 with this student."


def test_grey_data_needs_a_grey_teacher(toy_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.yaml"
    grey.write_text(toy_data.read_text() + "channels: 1\n")
    assert "takes images of 3 channels, the data has 1" in refusal(toy_teacher, toy_student, grey).problem


def test_a_pyramid_with_a_level_more(toy_teacher: Path, toy_data: Path) -> None:
    report = run(toy_teacher, "yolov8n-p2.yaml", toy_data)
    assert report.lines[1].startswith("levels: 3, strides 8, 16, 32 of 8, 16, 32 in the teacher; widths 64, 128, 256")


@pytest.mark.parametrize("student", ["yolov8n-p6.yaml", "yolov8n-p2.yaml"])
def test_sizes_are_rounded_to_the_students_coarsest_stride(toy_teacher: Path, toy_data: Path, student: str) -> None:
    assert run(toy_teacher, student, toy_data, imgsz=70).slowdown > 1  # 128 px for P6, 96 px for P2


def test_a_student_can_be_asked_about_itself(toy_student: Path, toy_data: Path) -> None:
    for teacher in ("self", "self:levels"):
        report = run(teacher, toy_student, toy_data)
        assert report.config.teacher == teacher
        assert report.warnings == []


def test_a_default_loss_that_the_teacher_cannot_serve_is_said_to_be_left_out(
    toy_teacher: Path, toy_student: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from yolokd.teachers.live import LiveTeacher

    class Blind(LiveTeacher):
        """A teacher without features, as an exported file is."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.info = replace(self.info, widths=(), hidden=())

        def __call__(self, batch: Any) -> Any:
            return replace(super().__call__(batch), feats=None)

    monkeypatch.setattr("yolokd.teachers.opening.LiveTeacher", Blind)
    report = run(toy_teacher, toy_student, toy_data)
    assert "cwd is left out: the teacher does not give what it needs" in report.lines
    assert list(report.config.losses) == ["cls", "box"]
    assert report.adapter_parameters == 0
    error = refusal(toy_teacher, toy_student, toy_data, {"losses": "cls,cwd"})
    assert error.problem == f"The loss cwd needs feats, which teacher={toy_teacher} does not give."
