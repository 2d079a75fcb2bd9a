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

from yolokd.classes import ClassMap, trained_classes
from yolokd.compat.checkpoint import (
    build_student,
    find_checkpoint,
    fit_to_data,
    head_info,
    read_checkpoint,
    sha256,
)
from yolokd.compat.larger import asked_side, training_side
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.learning import ImagesToLearn, data_of
from yolokd.needs import refuse_pair, refuse_settings, servable, trial_losses, without_features
from yolokd.predictions import Pair
from yolokd.preflight_text import cost_line, pair_lines, tap_lines
from yolokd.seating import open_panel, teachers_device
from yolokd.teachers.elsewhere import bare
from yolokd.teachers.live import LiveTeacher, resolve_precision
from yolokd.teachers.opening import NOBODY, Networks, find_teacher
from yolokd.teachers.spec import TeacherSpec, read_teachers
from yolokd.trial import run_trial

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
    found = replace(config, teacher=",".join(str(spec) for spec in specs), images=config.images.placed())
    with _same_randomness():
        student, data, knows_data = _student_and_data(config, train_args)
        images = ImagesToLearn.find(config, data, train_args)
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
        images.refuse(panel)
        refuse_pair(config, panel, info, {**train_args, "imgsz": side}, images.teachers_channels(panel))
        found = without_features(found, panel)
        losses = trial_losses(found, panel, student, int(train_args.get("seed") or 0))
        panel.to_precision(dtype)
        seen, larger = images.sample(panel, side, _TRIAL_IMAGES)
        trial = run_trial(
            panel, student.to(device), seen.to(device), None if larger is None else larger.to(device), amp=amp
        )
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
        *pair_lines(panel, maps, adapters),
        *tap_lines(config),
        *images.lines,
        *(f"{name} is left out: the teacher does not give what it needs" for name in without),
        cost_line(trial, slowdown, seen.shape, teachers_device(config, device) != device),
    ]
    return Report(
        lines=[*lines, *(f"WARNING: {warning}" for warning in warnings)],
        warnings=warnings,
        pairs=panel.pairs(),
        class_maps=maps,
        config=found,
        teacher=config.teacher,
        data=str(train_args.get("data") or ""),
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


def _student_and_data(config: DistillConfig, train_args: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any], bool]:
    """The student with the classes of the data, the data, and whether the student knew these classes already."""
    spec = train_args.get("model")
    if not spec:
        raise UserError("student= is missing.", "Name a checkpoint or a model YAML, e.g. student=yolo11n.pt.")
    student = build_student(spec, trust=config.trust)
    own = None if str(spec).endswith((".yaml", ".yml")) else list(student.names.values())
    if isinstance(extra := train_args.get("pretrained"), (str, Path)):
        read_checkpoint(find_checkpoint(extra, role="pretrained"), role="pretrained", trust=config.trust)
    data = data_of(config, train_args)
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


def _warnings(teachers: Sequence[TeacherSpec], student: Any) -> list[str]:
    """A student under its own file learns nothing."""
    file = Path(str(student))
    for path in [Path(spec.path) for spec in teachers if spec.kind == "checkpoint" and file.is_file()]:
        same_size = file.stat().st_size == path.stat().st_size
        if file.resolve() == path or (same_size and sha256(file) == sha256(path)):
            return ["teacher and student are the same file: there is nothing to learn from oneself."]
    return []
