from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import panel
from yolokd.compat.checkpoint import head_info, load_detector
from yolokd.errors import UserError
from yolokd.predictions import Predictions
from yolokd.teachers.live import LiveTeacher, refuse_not_finite
from yolokd.trial import run_trial

CPU = torch.device("cpu")


def test_a_trial_measures_both(toy_teacher: Path, toy_student: Path) -> None:
    teacher = LiveTeacher(load_detector(toy_teacher, role="teacher"), CPU, "fp32")
    student = load_detector(toy_student, role="student")
    trial = run_trial(panel(teacher, head_info(student)), student, torch.rand(2, 3, 64, 64))
    assert trial.teacher.scores is not None
    assert trial.teacher.scores.shape == (2, 3, 84)
    assert trial.teacher_seconds > 0
    assert trial.step_seconds > 0
    # 3.0 M parameters of YOLOv8-n in float32
    assert "12 MB" in trial.memory
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize(("output", "said"), [("scores", "class scores"), ("boxes", "boxes"), ("feats", "features")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_name_teacher_and_output(toy_teacher: Path, output: str, said: str, value: float) -> None:
    teacher = LiveTeacher(load_detector(toy_teacher, role="teacher"), CPU, "fp32", "big.pt")
    outputs = {"scores": torch.zeros(1, 3, 4), "boxes": torch.zeros(1, 8, 4), "feats": (torch.zeros(1, 2, 2, 2),)}
    refuse_not_finite(Predictions(**outputs), teacher)  # type: ignore[arg-type]
    (outputs[output][0] if output == "feats" else outputs[output]).view(-1)[3] = value  # type: ignore[union-attr]
    with pytest.raises(UserError) as caught:
        refuse_not_finite(Predictions(**outputs), teacher)  # type: ignore[arg-type]
    assert caught.value.problem.startswith(f"teacher=big.pt: its {said} hold NaN or Inf")
    teacher.to_precision(torch.bfloat16)  # perhaps the number format is to blame
    with pytest.raises(UserError, match=r"in bfloat16\.\nTry teacher_precision=fp32"):
        refuse_not_finite(Predictions(**outputs), teacher)  # type: ignore[arg-type]
    next(teacher.model.parameters()).fill_(value)  # no: the checkpoint itself is broken
    with pytest.raises(UserError, match="Take another checkpoint"):
        refuse_not_finite(Predictions(**outputs), teacher)  # type: ignore[arg-type]


def test_a_broken_student_is_named(toy_teacher: Path, toy_student: Path) -> None:
    teacher = LiveTeacher(load_detector(toy_teacher, role="teacher"), CPU, "fp32")
    student = load_detector(toy_student, role="student")
    with torch.no_grad():
        student.model[-1].cv3[0][-1].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="student=: its loss is NaN"):
        run_trial(panel(teacher, head_info(student)), student, torch.rand(2, 3, 64, 64))
