"""What the preflight found, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from yolokd.classes import ClassMap, shorten
from yolokd.config import DistillConfig
from yolokd.losses.base import LOSSES
from yolokd.teachers.panel import Panel
from yolokd.trial import Trial

if TYPE_CHECKING:
    from yolokd.preflight import Report


def checks_text(report: Report, teacher_maps: Mapping[str, float], student_map: float) -> str:
    """What ``yolokd checks`` prints: the report, the accuracies, and whether the teacher is worth having.

    Args:
        report: of the preflight.
        teacher_maps: each teacher's file and its mAP50-95 on the validation split, classes matched by name.
        student_map: the same of the student as it is before training.
    """
    lines = [*report.lines, f"memory: {report.memory}"]
    note = "" if report.student_knows_data else "  (not trained on these classes: the number means nothing yet)"
    for file, value in teacher_maps.items():
        which = f" {Path(file).name}" if len(teacher_maps) > 1 else ""
        lines += [f"teacher{which} mAP50-95 on {report.data}: {value:.3f}"]
    lines += [f"student mAP50-95 on {report.data}: {student_map:.3f}{note}"]
    if not teacher_maps:
        return "\n".join(lines)
    teacher_map = max(teacher_maps.values())
    finetune = " && ".join(f"yolo detect train model={file} data={report.data}" for file in teacher_maps)
    unmapped = report.unmapped
    if unmapped:
        lines += [
            f"WARNING: the teacher does not know {shorten(unmapped)}. Fine-tune it on your data first:",
            f"    {finetune}",
        ]
    elif len(teacher_maps) > 1 and any(part.unmapped for part in report.class_maps):
        lines += ["Each of these is marked over all classes, those included for which it does not speak."]
    elif report.student_knows_data and teacher_map <= student_map:
        lines += [
            "WARNING: the teacher is not better than the student on your validation split, so it has little to teach.",
            f"    A larger teacher, or this one fine-tuned on your data: {finetune}",
        ]
    elif not report.student_knows_data:
        lines += [f"To know what the teacher is worth, train the student plainly once, or fine-tune both: {finetune}"]
    return "\n".join(lines)


def pair_lines(panel: Panel, maps: list[ClassMap], adapters: int) -> list[str]:
    """What pairs with what; several teachers a block each."""
    lines = []
    for view, pair, classes in zip(panel.views, panel.pairs(), maps, strict=True):
        student, teacher = pair.student, pair.teacher
        missing = f"; without a teacher: {shorten(classes.unmapped)}" if classes.unmapped else ""
        boxes = "" if student.reg_max == teacher.reg_max > 1 else ": boxes are compared by expected distance and IoU"
        name = [f"teacher {view.teacher.name}:"] if len(maps) > 1 else []
        left = "" if view.match.whole else f" of {', '.join(str(s) for s in view.teacher.info.strides)} in the teacher"
        lines += [
            *name,
            f"classes: {classes.mapped} of {classes.total} mapped{missing}",
            f"levels: {len(student.strides)}, strides {_listed(student.strides)}{left}; "
            f"widths {_listed(student.widths)} (student), {_listed(teacher.widths) or 'none'} (teacher)",
            f"reg_max: {student.reg_max} (student), {teacher.reg_max} (teacher){boxes}",
        ]
    return [*lines, f"adapters: {adapters:,} parameters, trained with the student and thrown away"]


def tap_lines(config: DistillConfig) -> list[str]:
    """Which losses look where, where ``taps=`` parts them."""
    if not config.taps:
        return []
    there = ", ".join(name for name in config.losses if LOSSES[name].taps)
    rest = ", ".join(name for name in config.losses if not LOSSES[name].taps and "feats" in LOSSES[name].needs)
    layers = ", ".join(f"{s}:{t}" for s, t in config.taps)
    return [f"taps: {there} at layers {layers} (student:teacher)" + (f"; {rest} at the pyramid" if rest else "")]


def cost_line(trial: Trial, slowdown: float, shape: tuple[int, ...], beside: bool) -> str:
    """What a step costs; ``beside``: teacher and student run at the same time."""
    most = "at most " if beside else ""  # tried one after the other, trained beside one another
    return (
        f"a step takes {most}about {slowdown:.1f} times as long as a plain one, losses not counted (measured: teacher "
        f"{trial.teacher_seconds:.3f} s, student {trial.step_seconds:.3f} s, {shape[0]} images of {shape[-1]} px)"
    )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
