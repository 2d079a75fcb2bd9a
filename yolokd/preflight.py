"""Will this pair work, and what will it cost: asked of both models on real images before a run folder exists."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    read_checkpoint,
    sha256,
)
from yolokd.compat.dataset import check_data, sample_images
from yolokd.compat.larger import asked_side, training_side
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES
from yolokd.needs import refuse_pair, refuse_settings, servable, trial_losses, without_features
from yolokd.predictions import Pair
from yolokd.seating import open_panel, teachers_device
from yolokd.teachers.elsewhere import bare
from yolokd.teachers.live import LiveTeacher, resolve_precision
from yolokd.teachers.opening import NOBODY, Networks, find_teacher
from yolokd.teachers.panel import Panel
from yolokd.teachers.spec import TeacherSpec, read_teachers
from yolokd.trial import Trial, run_trial

# Enough images to see NaN and to time a step, few enough for a large teacher on a small CPU.
_TRIAL_IMAGES = 2


@dataclass(frozen=True)
class Report:
    """What the preflight found.

    Attributes:
        lines: what to print before training; warnings stand last.
        warnings: the warnings among them, without their prefix.
        pairs: the student's head, with the classes of the data, beside each teacher's.
        class_maps: which classes of each teacher speak for which class of the data.
        config: the settings as they will be trained: the teachers' absolute paths (a published name may have been
            fetched elsewhere), and no default loss that the teacher cannot serve.
        teacher: the teacher as the user named it.
        data: the data as the user named it.
        adapter_parameters: parameters that are trained beside the student and thrown away.
        slowdown: time of a distilled step over that of a plain one, measured on a few images.
        memory: the memory measured, in words.
        student_knows_data: the student is trained already, on the classes of the data.
        side: of the student's images, as they will be trained with; pixels.
        judged: the teachers' files whose mAP can be measured as the student's is.
    """

    lines: list[str]
    warnings: list[str]
    pairs: list[Pair]
    class_maps: list[ClassMap]
    config: DistillConfig
    teacher: str
    data: str
    adapter_parameters: int
    slowdown: float
    memory: str
    student_knows_data: bool
    side: int
    judged: list[str]

    @property
    def unmapped(self) -> list[str]:
        """The student's classes that no teacher speaks for."""
        return [name for name in self.class_maps[0].unmapped if all(name in m.unmapped for m in self.class_maps)]


def preflight(config: DistillConfig, train_args: Mapping[str, Any], peers: Networks = NOBODY) -> Report:
    """Load teacher and student, run both on real training images, and say what pairs and what it costs.

    Nothing is written, and the random number generators are left as they were.

    Args:
        config: the validated settings; its teacher must be named.
        train_args: Ultralytics' train arguments; ``model`` and ``data`` are needed, ``imgsz``, ``device``, ``amp``,
            ``seed``, ``split``, ``single_cls`` and ``pretrained`` are looked at.
        peers: whom ``teacher=peer:NAME`` asks.

    Raises:
        UserError: a file, the data, or the pair cannot serve; the teacher gives NaN or Inf.
    """
    refuse_settings(config, train_args)
    specs = [find_teacher(spec) for spec in read_teachers(config.teacher)]
    found = replace(config, teacher=",".join(str(spec) for spec in specs))
    with _same_randomness():
        student, data, knows_data = _student_and_data(config, train_args)
        device, dtype, amp = _arithmetic(config, train_args)
        info = head_info(student)
        side = training_side(asked_side(train_args.get("imgsz")), info.strides)
        panel = open_panel(
            *(found, info, device),
            network=lambda: student,
            peers=peers,
            only=trained_classes(train_args.get("classes")),
            imgsz=side,
        )
        refuse_pair(config, panel, info, {**train_args, "imgsz": side}, int(data["channels"]))
        found = without_features(found, panel)
        losses = trial_losses(found, panel, student, int(train_args.get("seed") or 0))
        panel.to_precision(dtype)
        images, larger = (
            sample_images(data, "train", imgsz=size, n=_TRIAL_IMAGES).to(device) if size else None
            for size in (side, config.teacher_imgsz)
        )
        assert images is not None
        trial = run_trial(panel, student.to(device), images, larger, amp=amp)
        replayed = replace(trial.teacher, feats=None, taps=None, reenter=None)
        # Found on whole images; the first batch of the training may hold too few boxes to tell.
        forms = {getattr(bare(view.teacher), "box_format", None) for view in panel.views} - {None}
        found = replace(found, teacher_boxes=str(*forms)) if len(forms) == 1 else found
        found = servable(found, replayed if config.teacher_cache else trial.teacher)
    asked = 0.0 if config.teacher_cache else trial.teacher_seconds / config.teacher_every
    slowdown = 1 + asked / trial.step_seconds
    warnings = _warnings(specs, train_args["model"])
    adapters = sum(p.numel() for name, loss in losses.items() if name in found.losses for p in loss.parameters())
    without = [name for name in config.losses if name not in found.losses]
    maps = [view.class_map for view in panel.views]
    lines = [
        *_pair_lines(panel, maps, adapters),
        *_tap_lines(config),
        *(f"{name} is left out: the teacher does not give what it needs" for name in without),
        _cost_line(trial, slowdown, images.shape, teachers_device(config, device) != device),
    ]
    return Report(
        lines=[*lines, *(f"WARNING: {warning}" for warning in warnings)],
        warnings=warnings,
        pairs=panel.pairs(),
        class_maps=maps,
        config=found,
        teacher=config.teacher,
        data=str(train_args["data"]),
        adapter_parameters=adapters,
        slowdown=slowdown,
        memory=trial.memory,
        student_knows_data=knows_data,
        side=side,
        judged=[view.teacher.name for view in panel.views if isinstance(bare(view.teacher), LiveTeacher)],
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
    return device, resolve_precision(config.teacher_precision, teachers_device(config, device), on, bf16), amp


def _pair_lines(panel: Panel, maps: list[ClassMap], adapters: int) -> list[str]:
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


def _tap_lines(config: DistillConfig) -> list[str]:
    """Which losses look where, where ``taps=`` parts them."""
    if not config.taps:
        return []
    there = ", ".join(name for name in config.losses if LOSSES[name].taps)
    rest = ", ".join(name for name in config.losses if not LOSSES[name].taps and "feats" in LOSSES[name].needs)
    layers = ", ".join(f"{s}:{t}" for s, t in config.taps)
    return [f"taps: {there} at layers {layers} (student:teacher)" + (f"; {rest} at the pyramid" if rest else "")]


def _cost_line(trial: Trial, slowdown: float, shape: tuple[int, ...], beside: bool) -> str:
    most = "at most " if beside else ""  # tried one after the other, trained beside one another
    return (
        f"a step takes {most}about {slowdown:.1f} times as long as a plain one, losses not counted (measured: teacher "
        f"{trial.teacher_seconds:.3f} s, student {trial.step_seconds:.3f} s, {shape[0]} images of {shape[-1]} px)"
    )


def _warnings(teachers: Sequence[TeacherSpec], student: Any) -> list[str]:
    """A student under its own file learns nothing."""
    file = Path(str(student))
    for path in [Path(spec.path) for spec in teachers if spec.kind == "checkpoint" and file.is_file()]:
        same_size = file.stat().st_size == path.stat().st_size
        if file.resolve() == path or (same_size and sha256(file) == sha256(path)):
            return ["teacher and student are the same file: there is nothing to learn from oneself."]
    return []


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
