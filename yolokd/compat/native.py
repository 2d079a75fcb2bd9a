"""Ultralytics' own distillation (``distill_model=``), as far as a comparison with it needs to know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.torch_utils import unwrap_model

from yolokd.compat.checkpoint import build_student, head_info, load_detector
from yolokd.compat.detr import is_detr
from yolokd.errors import UserError

NATIVE_KEYS = ("distill_model", "dis")


def bare_student(model: Any) -> nn.Module:
    """The student in what a trainer of Ultralytics trains, without what distillation or compiling put around it."""
    whole = unwrap_model(model)
    return unwrap_model(getattr(whole, "student_model", whole))  # type: ignore[no-any-return]


def refuse_native_pair(teacher: str | Path, student: str | Path, trust: bool = False) -> None:
    """Refuse what Ultralytics' distillation would only fall over after the run folder was written.

    Args:
        teacher: a ``.pt`` file.
        student: a ``.pt`` file or a model YAML.
        trust: load checkpoints that reference unknown globals.

    Raises:
        UserError: this Ultralytics has no such distillation, a model cannot serve, or the two do not fit together.
    """
    if any(key not in DEFAULT_CFG_DICT for key in NATIVE_KEYS):
        raise UserError("This Ultralytics has no distill_model=.", "Leave out the arm, or update ultralytics.")
    teaching = load_detector(teacher, role="teacher", trust=trust)
    if is_detr(teaching):
        raise UserError(f"distill_model={teacher} is an RT-DETR, which has no Detect head.", "Leave out the arm.")
    levels = [len(head_info(model).strides) for model in (teaching, build_student(student, trust=trust))]
    if levels[0] != levels[1]:
        raise UserError(
            f"Ultralytics' distillation needs as many levels in both heads: the teacher has {levels[0]}, the student "
            f"{levels[1]}.",
            "Take another teacher, or leave out the arm.",
        )
