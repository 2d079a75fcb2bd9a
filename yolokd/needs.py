"""Which losses can work with a pair, a teacher and a data set; the others are refused by name before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from yolokd.classes import ClassMap, shorten
from yolokd.config import DistillConfig
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES, build_losses
from yolokd.predictions import Pair, Predictions


def refuse_settings(config: DistillConfig, train_args: Mapping[str, Any]) -> None:
    """Refuse what contradicts Ultralytics' own settings.

    Args:
        config: the validated settings.
        train_args: Ultralytics' train arguments; ``batch``, ``device`` and ``compile`` are looked at.

    Raises:
        UserError: a batch too small for a loss; gradients to be balanced in a compiled student.
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
    if config.balance is not None and train_args.get("compile"):
        raise UserError(
            "balance= compares gradients inside the student, and a compiled one is a single step of autograd.",
            "Leave out compile=, or give each loss a gain and leave out balance=.",
        )


def refuse_pair(config: DistillConfig, pair: Pair, class_map: ClassMap) -> None:
    """Refuse levels that differ, and losses on classes where too few are shared.

    Raises:
        UserError: names the losses.
    """
    teacher, student = pair.teacher, pair.student
    if teacher.strides != student.strides:
        raise UserError(
            f"The teacher has {len(teacher.strides)} levels (strides {_listed(teacher.strides)}), the student "
            f"{len(student.strides)} (strides {_listed(student.strides)}).",
            "Both need the same levels: a P2 or P6 model goes with another of its kind.",
        )
    by_class = [name for name in config.losses if "scores" in LOSSES[name].needs]
    if by_class and not class_map.mapped:
        theirs, ours = (shorten(list(info.names.values())) for info in (teacher, student))
        rest = ",".join(name for name in config.losses if name not in by_class) or "box,cwd"
        raise UserError(
            f"No class of the teacher ({theirs}) is a class of the data ({ours}), so {', '.join(by_class)} "
            f"{'have' if len(by_class) > 1 else 'has'} nothing to compare.",
            f"Fine-tune the teacher on your data, map names with class_map=TEACHER:STUDENT, or say losses={rest}.",
        )
    for name in config.losses:
        if class_map.mapped < (least := LOSSES[name].classes):
            raise UserError(
                f"The loss {name} compares classes with one another and needs {least}; teacher and data share "
                f"{class_map.mapped}, so it would always be 0.",
                f"Take cls instead of {name}: it asks of each class by itself.",
            )


def refuse_channels(config: DistillConfig, teacher: int, data: int) -> None:
    """Refuse images of other channels than the teacher's.

    Raises:
        UserError: they differ.
    """
    if teacher != data:
        raise UserError(
            f"teacher={config.teacher} takes images of {teacher} channels, the data has {data}.",
            "Take a teacher that was trained on images with as many channels.",
        )


def refuse_what_is_missing(config: DistillConfig, predictions: Predictions) -> None:
    """Refuse losses that need what the teacher does not give.

    Args:
        config: the validated settings.
        predictions: the teacher's, of a few images.

    Raises:
        UserError: names the loss and what it misses.
    """
    for name in config.losses:
        if missing := [need for need in sorted(LOSSES[name].needs - {"truth"}) if getattr(predictions, need) is None]:
            raise UserError(
                f"The loss {name} needs {' and '.join(missing)}, which teacher={config.teacher} does not give.",
                f"Leave {name} out of losses=, or take another teacher.",
            )


def trial_losses(config: DistillConfig, pair: Pair, seed: int, tapped: Pair | None) -> nn.ModuleDict:
    """Build the losses as the training will.

    Raises:
        UserError: an option out of its range, or a head that a loss cannot enter.
    """
    try:
        return build_losses(config.losses, config.loss_options, pair, seed, tapped)
    except ValueError as error:
        raise UserError(
            f"{str(error).rstrip('.')}.", "`yolokd losses` lists the options with their defaults."
        ) from None


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
