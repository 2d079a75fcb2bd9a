"""Will this pair work, and what will it cost: asked of both models on real images before a run folder exists."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolokd.classes import ClassMap, shorten, trained_classes
from yolokd.compat.checkpoint import (
    build_student,
    find_checkpoint,
    fit_to_data,
    head_info,
    load_detector,
    read_checkpoint,
    sha256,
)
from yolokd.compat.dataset import check_data, sample_images
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES
from yolokd.needs import refuse_channels, refuse_pair, refuse_settings, refuse_what_is_missing, trial_losses
from yolokd.predictions import Pair
from yolokd.taps import entry_depth, tapped_pair
from yolokd.teachers.live import LiveTeacher, resolve_precision
from yolokd.trial import Trial, run_trial

# Enough images to see NaN and to time a step, few enough for a large teacher on a small CPU.
_TRIAL_IMAGES = 2


@dataclass(frozen=True)
class Report:
    """What the preflight found.

    Attributes:
        lines: what to print before training; warnings stand last.
        warnings: the warnings among them, without their prefix.
        pair: the two heads, the student's with the classes of the data.
        class_map: which teacher classes speak for which class of the data.
        teacher: the teacher as the user named it.
        teacher_file: the teacher's checkpoint on this disk (a published name may have been fetched elsewhere).
        data: the data as the user named it.
        adapter_parameters: parameters that are trained beside the student and thrown away.
        slowdown: time of a distilled step over that of a plain one, measured on a few images.
        memory: the memory measured, in words.
        student_knows_data: the student is trained already, on the classes of the data.
    """

    lines: list[str]
    warnings: list[str]
    pair: Pair
    class_map: ClassMap
    teacher: str
    teacher_file: Path
    data: str
    adapter_parameters: int
    slowdown: float
    memory: str
    student_knows_data: bool


def preflight(config: DistillConfig, train_args: Mapping[str, Any]) -> Report:
    """Load teacher and student, run both on real training images, and say what pairs and what it costs.

    Nothing is written, and the random number generators are left as they were.

    Args:
        config: the validated settings; its teacher must be named.
        train_args: Ultralytics' train arguments; ``model`` and ``data`` are needed, ``imgsz``, ``device``, ``amp``,
            ``seed``, ``split``, ``single_cls`` and ``pretrained`` are looked at.

    Raises:
        UserError: a file, the data, or the pair cannot serve; the teacher gives NaN or Inf.
    """
    refuse_settings(config, train_args)
    with _same_randomness():
        file = find_checkpoint(config.teacher, role="teacher")
        teacher = load_detector(file, role="teacher", trust=config.trust)
        student, data, knows_data = _student_and_data(config, train_args)
        pair = Pair(student=head_info(student), teacher=head_info(teacher))
        only = trained_classes(train_args.get("classes"))
        class_map = ClassMap.by_name(pair.teacher.names, pair.student.names, config.class_map, only)
        refuse_pair(config, pair, class_map)
        refuse_channels(config, int(teacher.yaml.get("channels", 3)), int(data["channels"]))
        tapped = tapped_pair(pair, student, teacher, config.taps)
        losses = trial_losses(config, pair, int(train_args.get("seed") or 0), tapped)
        adapters = sum(parameter.numel() for parameter in losses.parameters())
        device, dtype, amp = _arithmetic(config, train_args)
        images = sample_images(data, "train", imgsz=_side(train_args), n=_TRIAL_IMAGES).to(device)
        live = LiveTeacher(teacher, device, "fp32", config.teacher)
        live.to_precision(dtype)
        live.open([t for _, t in config.taps], entry_depth(losses))
        trial = run_trial(live, student.to(device), images, amp=amp)
        refuse_what_is_missing(config, trial.teacher)
    slowdown = 1 + trial.teacher_seconds / trial.step_seconds
    warnings = _warnings(file, train_args["model"])
    lines = [*_pair_lines(pair, class_map, adapters), *_tap_lines(config), _cost_line(trial, slowdown, images.shape)]
    return Report(
        lines=[*lines, *(f"WARNING: {warning}" for warning in warnings)],
        warnings=warnings,
        pair=pair,
        class_map=class_map,
        teacher=config.teacher,
        teacher_file=file,
        data=str(train_args["data"]),
        adapter_parameters=adapters,
        slowdown=slowdown,
        memory=trial.memory,
        student_knows_data=knows_data,
    )


def preflight_plain(config: DistillConfig, train_args: Mapping[str, Any]) -> None:
    """The part of the preflight that a run without a teacher needs: files read safely, data there.

    Args:
        config: the validated settings; only ``trust`` is looked at.
        train_args: as for `preflight`.

    Raises:
        UserError: the student, ``pretrained`` or the data cannot serve.
    """
    with _same_randomness():
        _student_and_data(config, train_args)


def checks_text(report: Report, teacher_map: float, student_map: float) -> str:
    """What ``yolokd checks`` prints: the report, both accuracies, and whether the teacher is worth having.

    Args:
        report: of the preflight.
        teacher_map: mAP50-95 of the teacher on the validation split, classes matched by name.
        student_map: the same of the student as it is before training.
    """
    lines = [*report.lines, f"memory: {report.memory}"]
    note = "" if report.student_knows_data else "  (not trained on these classes: the number means nothing yet)"
    lines += [f"teacher mAP50-95 on {report.data}: {teacher_map:.3f}"]
    lines += [f"student mAP50-95 on {report.data}: {student_map:.3f}{note}"]
    finetune = f"yolo detect train model={report.teacher} data={report.data}"
    unmapped = report.class_map.unmapped
    if unmapped:
        lines += [
            f"WARNING: the teacher does not know {shorten(unmapped)}. Fine-tune it on your data first:",
            f"    {finetune}",
        ]
    elif report.student_knows_data and teacher_map <= student_map:
        lines += [
            "WARNING: the teacher is not better than the student on your validation split, so it has little to teach.",
            f"    A larger teacher, or this one fine-tuned on your data: {finetune}",
        ]
    elif not report.student_knows_data:
        lines += [f"To know what the teacher is worth, train the student plainly once, or fine-tune both: {finetune}"]
    return "\n".join(lines)


def _student_and_data(config: DistillConfig, train_args: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any], bool]:
    """The student with the classes of the data, the data, and whether the student knew these classes already."""
    spec = train_args.get("model")
    if not spec:
        raise UserError("student= is missing.", "Name a checkpoint or a model YAML, e.g. student=yolo11n.pt.")
    student = build_student(spec, trust=config.trust)
    own = None if str(spec).endswith((".yaml", ".yml")) else list(student.names.values())
    if isinstance(extra := train_args.get("pretrained"), (str, Path)):
        read_checkpoint(find_checkpoint(extra, role="pretrained"), role="pretrained", trust=config.trust)
    data = check_data(train_args.get("data"), "train", str(train_args.get("split") or "val"))
    names = {0: "item"} if train_args.get("single_cls") else dict(data["names"])
    return fit_to_data(student, names, int(data["channels"])), data, own == list(names.values())


@contextlib.contextmanager
def _same_randomness() -> Iterator[None]:
    """Give back every random number generator as it was: a run must not depend on having been looked at."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _arithmetic(
    config: DistillConfig, train_args: Mapping[str, Any]
) -> tuple[torch.device, torch.dtype, torch.dtype | None]:
    """Device of the trial, number format of the teacher, and that of the student's mixed precision (None: float32)."""
    wanted = str(train_args.get("device") if train_args.get("device") is not None else "").lower()
    wanted = wanted.removeprefix("cuda:").replace("cuda", "0")
    cuda = torch.cuda.is_available() and (wanted in ("", "-1") or wanted.isdigit())
    # A list of GPUs is tried on the CPU: the workers, not this process, are to fill the GPUs.
    device = torch.device("cuda", int(wanted) if wanted.isdigit() else 0) if cuda else torch.device("cpu")
    mixed = train_args.get("amp", True)
    bf16 = str(mixed).lower() == "bf16"
    on = cuda and (mixed is True or str(mixed).lower() in ("fp16", "bf16"))
    amp = (torch.bfloat16 if bf16 else torch.float16) if on else None
    return device, resolve_precision(config.teacher_precision, device, on, bf16), amp


def _side(train_args: Mapping[str, Any]) -> int:
    """The side of the training images in pixels, a multiple of 32 as Ultralytics makes it."""
    imgsz = train_args.get("imgsz") or 640
    try:
        side = max(int(size) for size in imgsz) if isinstance(imgsz, (list, tuple)) else int(imgsz)
    except (TypeError, ValueError):
        side = 0
    if side < 1:
        raise UserError(f"imgsz={imgsz} is not a size in pixels.", "Write e.g. imgsz=640.") from None
    return -(-side // 32) * 32


def _pair_lines(pair: Pair, class_map: ClassMap, adapters: int) -> list[str]:
    student, teacher = pair.student, pair.teacher
    missing = f"; without a teacher: {shorten(class_map.unmapped)}" if class_map.unmapped else ""
    boxes = "" if student.reg_max == teacher.reg_max > 1 else ": boxes are compared by expected distance and IoU"
    return [
        f"classes: {class_map.mapped} of {class_map.total} mapped{missing}",
        f"levels: {len(student.strides)}, strides {_listed(student.strides)}; "
        f"widths {_listed(student.widths)} (student), {_listed(teacher.widths)} (teacher)",
        f"reg_max: {student.reg_max} (student), {teacher.reg_max} (teacher){boxes}",
        f"adapters: {adapters:,} parameters, trained with the student and thrown away",
    ]


def _tap_lines(config: DistillConfig) -> list[str]:
    """Which losses look where, where ``taps=`` parts them."""
    if not config.taps:
        return []
    there = ", ".join(name for name in config.losses if LOSSES[name].taps)
    rest = ", ".join(name for name in config.losses if not LOSSES[name].taps and "feats" in LOSSES[name].needs)
    layers = ", ".join(f"{s}:{t}" for s, t in config.taps)
    return [f"taps: {there} at layers {layers} (student:teacher)" + (f"; {rest} at the pyramid" if rest else "")]


def _cost_line(trial: Trial, slowdown: float, shape: tuple[int, ...]) -> str:
    return (
        f"a step takes about {slowdown:.1f} times as long as a plain one, losses not counted (measured: teacher "
        f"{trial.teacher_seconds:.3f} s, student {trial.step_seconds:.3f} s, {shape[0]} images of {shape[-1]} px)"
    )


def _warnings(teacher: Path, student: Any) -> list[str]:
    file = Path(str(student))
    same = file.is_file() and (
        file.resolve() == teacher or (file.stat().st_size == teacher.stat().st_size and sha256(file) == sha256(teacher))
    )
    return ["teacher and student are the same file: there is nothing to learn from oneself."] if same else []


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
