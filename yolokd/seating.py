"""A student's teachers and losses, as its settings ask for them: built alike for the preflight and for the training."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from yolokd.compat.larger import training_side
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.losses.each import build_for_all
from yolokd.predictions import HeadInfo
from yolokd.replaying import open_cache
from yolokd.taps import entry_depth, tapped_pair
from yolokd.teachers.elsewhere import Elsewhere, same_device
from yolokd.teachers.itself import RunningTeacher
from yolokd.teachers.live import Teacher
from yolokd.teachers.mean import MeanPanel
from yolokd.teachers.opening import Networks, find_teacher, open_teacher, seat
from yolokd.teachers.panel import Panel
from yolokd.teachers.replay import ReplayTeacher
from yolokd.teachers.spec import read_teachers
from yolokd.teachers.view import View


def teachers_device(config: DistillConfig, student: torch.device) -> torch.device:
    """Where the teachers run: ``teacher_device=``, or the student's device."""
    asked = torch.device(config.teacher_device) if config.teacher_device else student
    return student if same_device(asked, student) else asked


def open_panel(
    config: DistillConfig,
    student: HeadInfo,
    device: torch.device,
    *,
    network: Callable[[], nn.Module],
    peers: Networks,
    only: Collection[int] | None,
    imgsz: int,
    replay: bool = False,
) -> Panel:
    """Open the teachers of ``teacher=``, in float32, and seat them.

    Args:
        config: the validated settings.
        student: the student's head, with the classes of the data.
        device: the student's; the teachers run there, too, unless ``teacher_device=`` names another.
        network: gives the network that ``teacher=self`` asks.
        peers: whom ``teacher=peer:NAME`` asks.
        only: Ultralytics' ``classes=``; None is all.
        imgsz: side of the student's images as it was asked for, pixels.
        replay: the stored answers of ``teacher_cache=`` speak for the teacher.

    Raises:
        UserError: a file cannot serve, or no level or class is shared as asked.
    """
    specs = [find_teacher(spec) for spec in read_teachers(config.teacher)]
    side = training_side(imgsz, student.strides)
    # What is replayed lies in the student's images already, whatever the teacher saw.
    larger = side if replay else config.teacher_imgsz or side
    place = teachers_device(config, device)
    teachers: list[Teacher] = (
        [ReplayTeacher(open_cache(config, side), student.strides, specs[0].path)]
        if replay
        else [
            open_teacher(spec, place, student, network, peers, larger, config.trust, **config.exported)
            for spec in specs
        ]
    )
    if place != device:
        teachers = [Elsewhere(teacher, place) for teacher in teachers]
    panel = seat(
        specs,
        teachers,
        student,
        overrides=config.class_map,
        only=only,
        weights=config.teacher_weights,
        ratio=larger / side,
    )
    if not config.images.domain:
        return panel
    return MeanPanel(panel, RunningTeacher(network, student, "the student's average"), student)


def fit_losses(config: DistillConfig, panel: Panel, student: Any, seed: int) -> nn.ModuleDict:
    """Build the losses for these teachers, and let the teachers give what the losses look at.

    Args:
        config: the validated settings.
        panel: the teachers.
        student: the student, a DetectionModel.
        seed: of the adapters' initial weights.

    Raises:
        UserError: a layer or a head that is not there to look into.
        ValueError: an option out of its range.
    """
    tapped = []
    for view in panel.views if config.taps else ():
        model = getattr(view.teacher, "model", None)
        if model is None:
            raise UserError(
                f"taps= looks into layers of the teacher, and teacher={view.teacher.name} has none to look into.",
                "Leave out taps=, or take a PyTorch checkpoint as teacher.",
            )
        tapped.append(tapped_pair(view.pair(), student, model, config.taps, view.match.ratio))
    losses = build_for_all(config.losses, config.loss_options, panel.pairs(), tapped, seed, panel.weights)
    layers, depth = [t for _, t in config.taps], entry_depth(losses)
    for view in panel.views if layers or depth is not None else ():
        opened = getattr(view.teacher, "open", None)
        if opened is None or (depth is not None and not _enters(view)):
            what = "crosskd" if depth is not None else "taps="
            raise UserError(
                f"{what} looks inside the teacher, which teacher={view.teacher.name} does not allow for this student.",
                f"Leave out {what}.",
            )
        opened(layers, depth)
    return losses


def _enters(view: View) -> bool:
    """Each of the student's taught levels finds the teacher's own, of its own size, behind the door."""
    return view.match.ratio == 1 and view.match.teacher == tuple(range(len(view.teacher.info.strides)))
