"""What the preflight and `yolokd checks` say."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import save_detector
from tests.test_preflight import run
from yolokd.preflight_text import checks_text


def test_the_lines_say_what_pairs_and_what_it_costs(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    report = run(toy_teacher, toy_student, toy_data)
    assert report.lines[:4] == [
        "classes: 3 of 3 mapped",
        "levels: 3, strides 8, 16, 32; widths 64, 128, 256 (student), 64, 128, 256 (teacher)",
        "reg_max: 16 (student), 16 (teacher)",
        # 64 * 64 + 128 * 128 + 256 * 256, no bias
        "adapters: 86,016 parameters, trained with the student and thrown away",
    ]
    assert report.lines[4].startswith(f"a step takes about {report.slowdown:.1f} times as long as a plain one")
    assert report.slowdown > 1
    assert report.warnings == []
    assert report.student_knows_data
    assert report.config.teacher == str(toy_teacher)


def test_checks_say_whether_the_teacher_is_worth_it(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    report = run(toy_teacher, toy_student, toy_data)
    finetune = f"yolo detect train model={toy_teacher} data={toy_data}"
    better = checks_text(report, {"t.pt": 0.5}, 0.4)
    assert "0.500" in better
    assert "0.400" in better
    assert "WARNING" not in better
    assert report.memory in better
    worse = checks_text(report, {str(toy_teacher): 0.4}, 0.4)
    assert "WARNING: the teacher is not better" in worse
    assert finetune in worse
    both = checks_text(report, {"a.pt": 0.4, "b.pt": 0.3}, 0.4)
    assert f"yolo detect train model=a.pt data={toy_data} && yolo detect train model=b.pt data={toy_data}" in both
    fresh = checks_text(run(toy_teacher, "yolo11n.yaml", toy_data), {"t.pt": 0.4}, 0.0)
    assert "means nothing yet" in fresh
    assert "not better" not in fresh


def test_checks_give_no_verdict_on_specialists(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    report = run(f"{toy_teacher}:red+blue,{toy_student}:green", toy_student, toy_data)
    text = checks_text(report, {"a.pt": 0.3, "b.pt": 0.28}, 0.4)
    assert "is not better" not in text
    assert "marked over all classes, those included for which it does not speak" in text


def test_checks_name_the_classes_that_the_teacher_lacks(toy_student: Path, toy_data: Path, tmp_path: Path) -> None:
    teacher = save_detector("yolov8n.yaml", tmp_path / "t.pt", {0: "red"})
    text = checks_text(run(teacher, toy_student, toy_data), {str(teacher): 0.2}, 0.1)
    assert "does not know green, blue" in text
    assert f"yolo detect train model={teacher}" in text


def test_the_lines_say_which_losses_look_where(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    report = run(toy_teacher, toy_student, toy_data, {"losses": "cls,cwd,sl2", "taps": "4,6:6"})
    assert "taps: cwd at layers 4:4, 6:6 (student:teacher); sl2 at the pyramid" in report.lines
    report = run(toy_teacher, toy_student, toy_data, {"losses": "cls,cwd", "taps": "4"})
    assert "taps: cwd at layers 4:4 (student:teacher)" in report.lines


def test_several_teachers_have_a_block_each(toy_teacher: Path, toy_student: Path, toy_data: Path) -> None:
    report = run(f"{toy_teacher}:red+blue,{toy_student}:green", "yolo11n.yaml", toy_data)
    assert report.lines[0] == f"teacher {toy_teacher}:"
    assert report.lines[1] == "classes: 2 of 3 mapped; without a teacher: green"
    assert report.lines[4:6] == [f"teacher {toy_student}:", "classes: 1 of 3 mapped; without a teacher: red, blue"]
    assert report.lines[8].startswith("adapters: 172,032 parameters")  # of each: 64 * 64 + 128 * 128 + 256 * 256
    assert report.unmapped == []
    assert report.config.teacher == f"{toy_teacher}:red+blue,{toy_student}:green"
