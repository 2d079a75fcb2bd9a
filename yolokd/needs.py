"""Which losses can work with a pair, a teacher and a data set; the others are refused by name before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from yolokd.classes import shorten
from yolokd.compat.larger import training_side
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES
from yolokd.losses.each import of_each
from yolokd.predictions import HeadInfo, Predictions
from yolokd.replaying import cached_teacher
from yolokd.seating import fit_losses
from yolokd.teachers.elsewhere import bare, is_there
from yolokd.teachers.live import LiveTeacher, refuse_channels
from yolokd.teachers.panel import Panel
from yolokd.teachers.spec import read_teachers


def refuse_settings(config: DistillConfig, train_args: Mapping[str, Any]) -> None:
    """Refuse what contradicts Ultralytics' own settings.

    Args:
        config: the validated settings.
        train_args: Ultralytics' train arguments; ``batch``, ``device`` and ``compile`` are looked at.

    Raises:
        UserError: a batch too small for a loss; gradients to be balanced in a compiled student; see the others.
    """
    batch, ranks = train_args.get("batch", 16), len(str(train_args.get("device") or "").split(","))
    for name in config.losses:
        # AutoBatch (-1, or a share of the memory) is held to this when it has found its number.
        least = LOSSES[name].batch
        if least > 1 and isinstance(batch, int) and 0 < batch < least * ranks:
            raise UserError(
                f"The loss {name} compares the images of a batch and needs {least}; batch={batch}"
                + (f" is {batch // ranks} on each of {ranks} devices." if ranks > 1 else "."),
                f"Take batch={least * ranks} or more, or leave {name} out of losses=.",
            )
    if isinstance(batch, (int, float)) and batch < 1 and config.teacher == "self":
        raise UserError(
            f"batch={batch} with teacher=self: what fits is measured before there is a running average to ask.",
            "Give the number of images, e.g. batch=16.",
        )
    if config.teacher_cache:
        cached_teacher(config)
    refuse_device(config, train_args)
    _refuse_sizes(config, train_args)
    if config.balance is not None and train_args.get("compile"):
        raise UserError(
            "balance= compares gradients inside the student, and a compiled one is a single step of autograd.",
            "Leave out compile=, or give each loss a gain and leave out balance=.",
        )


def refuse_device(config: DistillConfig, train_args: Mapping[str, Any]) -> None:
    """Refuse a ``teacher_device=`` that is not there, or that has no meaning.

    Args:
        config: the validated settings.
        train_args: Ultralytics' train arguments; ``device`` is looked at.

    Raises:
        UserError: PyTorch sees no such device; the teacher is bound to the student; there are several processes.
    """
    asked, device = config.teacher_device, str(train_args.get("device") or "").strip("[]() ,")
    if not asked:
        return
    if config.teacher_cache:
        cached_teacher(config)  # which says that no teacher runs
    if any(spec.kind in ("self", "levels", "peer") for spec in read_teachers(config.teacher)):
        raise UserError(
            f"teacher={config.teacher} is trained here and runs where it is trained, not on teacher_device={asked}.",
            "Leave out teacher_device=, or take another teacher.",
        )
    if "," in device:
        raise UserError(
            f"teacher_device={asked} with device={device}: each process has a teacher of its own on its own GPU.",
            "Leave out teacher_device=, or name one device, e.g. device=0.",
        )
    if not is_there(torch.device(asked)):
        seen = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count())) or "no GPU"
        raise UserError(
            f"teacher_device={asked} is not there: PyTorch sees {seen} here.",
            "Name one that is, e.g. teacher_device=cpu; without the key the teacher runs where the student does.",
        )


def _refuse_sizes(config: DistillConfig, train_args: Mapping[str, Any]) -> None:
    """Refuse a size of the teacher's images that the student's cannot be made from."""
    larger, imgsz = config.teacher_imgsz, train_args.get("imgsz") or 640
    if larger is None:
        return
    if config.teacher == "self:levels":
        raise UserError(
            "teacher=self:levels speaks of what the student itself has seen, so teacher_imgsz= has no meaning there.",
            "Leave out teacher_imgsz=, or take teacher=self.",
        )
    if not isinstance(imgsz, int) or larger <= imgsz or larger % 32:
        raise UserError(
            f"teacher_imgsz={larger} with imgsz={imgsz}: the teacher's images are the larger ones, in multiples of 32.",
            "Take e.g. teacher_imgsz=1280 with imgsz=640, or leave it out: enlarging an image adds nothing to it.",
        )
    if train_args.get("rect") and not config.teacher_cache:
        raise UserError(
            "rect=True and teacher_imgsz= do not go together: the reduced images would not fit the student's strides.",
            "Leave out one of the two.",
        )
    if train_args.get("multi_scale") and larger % imgsz and not config.teacher_cache:
        raise UserError(
            f"multi_scale needs a teacher_imgsz that is a multiple of imgsz={imgsz}, not {larger}.",
            f"Take teacher_imgsz={2 * imgsz}, or leave out multi_scale.",
        )


def refuse_pair(
    config: DistillConfig, panel: Panel, student: HeadInfo, train_args: Mapping[str, Any], channels: int
) -> None:
    """Refuse teachers that cannot take the images, or have no word on the classes.

    Args:
        config: the validated settings.
        panel: the teachers.
        student: the student's head, with the classes of the data.
        train_args: Ultralytics' train arguments; ``imgsz``, ``multi_scale`` and ``rect`` are looked at.
        channels: of the data's images.

    Raises:
        UserError: see the three; or there is no network of its own to compile, or none that can run elsewhere.
    """
    if config.teacher_compile and not any(isinstance(bare(view.teacher), LiveTeacher) for view in panel.views):
        raise UserError(
            f"teacher_compile= compiles a YOLO that is a network of its own, and teacher={config.teacher} is none.",
            "Leave out teacher_compile=.",
        )
    bound = [view.teacher.name for view in panel.views if getattr(view.teacher, "on_cpu", False)]
    if bound and config.teacher_device not in ("", "cpu"):
        raise UserError(
            f"teacher={bound[0]} computes on the CPU here, and teacher_device={config.teacher_device} asks for a GPU.",
            "Leave out teacher_device=; an ONNX file can use a GPU where onnxruntime-gpu is installed.",
        )
    refuse_grids(panel, student, config, train_args)
    refuse_classes(config, panel)
    for view in panel.views:
        refuse_channels(view.teacher, channels)


def refuse_grids(panel: Panel, student: HeadInfo, config: DistillConfig, train_args: Mapping[str, Any]) -> None:
    """Refuse images that a teacher with a coarser pyramid than the student's cannot take.

    A pyramid that is added up from its top needs images of whole cells there; Ultralytics sees to that for the student.

    Raises:
        UserError: the teacher's images are smaller than the student's, not a multiple of its coarsest stride, or of
            changing size where it takes one only.
    """
    side = training_side(int(train_args.get("imgsz") or 640), student.strides)
    larger = config.teacher_imgsz or side
    if larger < side or (config.teacher_imgsz and larger == side):
        raise UserError(
            f"teacher_imgsz={larger} is not above the {side} px that this student is trained with.",
            "Take a larger one, or leave it out.",
        )
    # A teacher whose answers are stored never sees these images.
    moving = [key for key in ("multi_scale", "rect") if train_args.get(key) and not config.teacher_cache]
    step = training_side(1, student.strides) * larger / side if moving else larger
    for view in panel.views:
        if moving and getattr(view.teacher, "fixed", False):
            raise UserError(
                f"teacher={view.teacher.name} takes images of one size, and {moving[0]}= changes theirs.",
                f"Leave out {moving[0]}=, or export the teacher with dynamic=True.",
            )
        coarsest = max(view.teacher.info.strides, default=1)
        if step % coarsest:
            raise UserError(
                f"teacher={view.teacher.name} takes images whose sides are multiples of {coarsest} px; these are of "
                + (f"multiples of {step:g} px with {moving[0]}=." if moving else f"{larger} px."),
                "Leave it out, or take another teacher." if moving else f"Take a multiple of {coarsest}.",
            )


def refuse_classes(config: DistillConfig, panel: Panel) -> None:
    """Refuse losses on classes where too few are shared.

    Raises:
        UserError: names the losses, or of several teachers one that has no word.
    """
    mapped = len(set().union(*(view.class_map.pairs for view in panel.views)))
    by_class = [name for name in config.losses if "scores" in LOSSES[name].needs]
    if by_class and not mapped:
        first = panel.views[0].class_map
        theirs, ours = (shorten(list(names.values())) for names in (first.teacher_names, first.student_names))
        rest = ",".join(name for name in config.losses if name not in by_class) or "box,cwd"
        raise UserError(
            f"No class of the teacher ({theirs}) is a class of the data ({ours}), so {', '.join(by_class)} "
            f"{'have' if len(by_class) > 1 else 'has'} nothing to compare.",
            f"Fine-tune the teacher on your data, map names with class_map=TEACHER:STUDENT, or say losses={rest}.",
        )
    silent = [view.teacher.name for view in panel.views if not view.class_map.mapped]
    if mapped and silent:
        raise UserError(
            f"teacher={silent[0]} knows no class of the data that it could speak for, beside another that does.",
            "Leave it out, or map names with class_map=TEACHER:STUDENT.",
        )
    for name in config.losses:
        if mapped < (least := LOSSES[name].classes):
            raise UserError(
                f"The loss {name} compares classes with one another and needs {least}; teacher and data share "
                f"{mapped}, so it would always be 0.",
                f"Take cls instead of {name}: it asks of each class by itself.",
            )


def what_is_missing(losses: Iterable[str], predictions: Predictions) -> dict[str, list[str]]:
    """Which of the losses need what the teacher does not give, and what that is.

    Args:
        losses: their names.
        predictions: the teacher's, of a few images; of several teachers, what all of them say.
    """
    missing = {}
    for name in losses:
        # Responses of several teachers are averaged; a loss on features is there for each of them.
        asked = (predictions.members or (predictions,)) if of_each(name) else (predictions,)
        needs = sorted(LOSSES[name].needs - {"truth"})
        missing[name] = [need for need in needs if any(getattr(said, need) is None for said in asked)]
    return {name: needs for name, needs in missing.items() if needs}


def without_features(config: DistillConfig, panel: Panel) -> DistillConfig:
    """The settings without those default losses on features that a teacher whose head has none cannot serve.

    Asked before the losses are built, whose adapters want the widths of these features.

    Raises:
        UserError: names a loss that was asked for.
    """
    if all(pair.teacher.widths for pair in panel.pairs()):
        return config
    return _leave_out(config, {name: ["feats"] for name in config.losses if "feats" in LOSSES[name].needs})


def servable(config: DistillConfig, predictions: Predictions) -> DistillConfig:
    """The settings without those default losses that the teacher cannot serve; losses that were named stay.

    Args:
        config: the validated settings.
        predictions: the teacher's, of a few images.

    Raises:
        UserError: names a loss that was asked for, and what it misses.
    """
    return replace(_leave_out(config, what_is_missing(config.losses, predictions)), chosen=True)


def _leave_out(config: DistillConfig, missing: Mapping[str, list[str]]) -> DistillConfig:
    """Without these losses, where nobody asked for one of them by name or by an option."""
    kept = {name: gain for name, gain in config.losses.items() if name not in missing}
    if not missing or (kept and not config.chosen and not missing.keys() & config.loss_options.keys()):
        return replace(config, losses=kept)
    name, needs = next(iter(missing.items()))
    if config.teacher_cache:
        raise UserError(
            f"The loss {name} needs {' and '.join(needs)}; teacher_cache= replays a teacher's boxes and scores alone.",
            f"Leave {name} out of losses=, or leave out teacher_cache=.",
        )
    raise UserError(
        f"The loss {name} needs {' and '.join(needs)}, which teacher={config.teacher} does not give.",
        f"Leave {name} out of losses=, or take another teacher.",
    )


def trial_losses(config: DistillConfig, panel: Panel, student: nn.Module, seed: int) -> nn.ModuleDict:
    """Build the losses as the training will.

    Raises:
        UserError: an option out of its range, or a head that a loss cannot enter.
    """
    try:
        return fit_losses(config, panel, student, seed)
    except ValueError as error:
        raise UserError(
            f"{str(error).rstrip('.')}.", "`yolokd losses` lists the options with their defaults."
        ) from None
