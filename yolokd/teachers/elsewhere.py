"""A teacher whose network lies on another device than the student: ``teacher_device=``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from yolokd.predictions import Hidden, Predictions
from yolokd.teachers.live import LARGER, Teacher

# What a teacher may have beside its answer. Nothing else is passed on: its `forward` would answer on its own device.
_LENT = ("model", "dtype", "open", "compile", "to_precision", "fixed", "on_cpu")


class Elsewhere:
    """A teacher on a device of its own; its answers are brought to the student's.

    A GPU is told what to do and not waited for. So on two GPUs an answer that is begun as soon as the batch is there
    comes about beside the student's forward pass, and the criterion takes it afterwards. What this process has to wait
    for is done before the student's forward pass instead: on a CPU, by an exported file, and the choice among the
    queries of an RT-DETR.

    Not done: the answer to the next batch beside the backward pass. It would have to look ahead into the loader, where
    ``multi_scale`` gives a batch its size only when its turn comes, and where a retry after a lack of memory begins
    anew with smaller batches.

    Args:
        teacher: opened on that device; one that needs nothing of the student.
        device: where it lies.
    """

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher = teacher
        self.info = teacher.info
        self.name = teacher.name
        self._device = device
        self._begun: tuple[Tensor, Predictions] | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in _LENT:
            raise AttributeError(name)
        return getattr(self.teacher, name)

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Begin the answer to a batch, which is kept until it is asked for or another one is begun."""
        self._begun = None  # before there are two: nobody has asked for it, and nobody will
        self._begun = batch["img"], self._ask(batch)

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """The answer to ``batch["img"]``, ``(B, 3, H, W)`` in [0, 1], or to larger images, on the device of these.

        An answer that was begun is taken once, and for the very tensor that it was begun for; else the teacher is asked
        now.
        """
        begun, self._begun = self._begun, None
        said = begun[1] if begun is not None and begun[0] is batch["img"] else self._ask(batch)
        door = None if said.reenter is None else partial(self._reenter, said.reenter)
        here: Predictions = moved(replace(said, reenter=door), batch["img"].device)
        return here

    @torch.no_grad()
    def _ask(self, batch: Mapping[str, Any]) -> Predictions:
        """The answer, still on the teacher's device; only what the teacher looks at goes there."""
        return self.teacher({"img": moved(batch.get(LARGER, batch["img"]), self._device)})

    def _reenter(self, door: Callable[[Hidden], Predictions], hidden: Hidden) -> Predictions:
        """Through the teacher's head and back; a gradient goes the same way."""
        here: Predictions = moved(door(moved(hidden, self._device)), hidden[0][0].device)
        return here


def bare(teacher: Teacher) -> Teacher:
    """The teacher itself, wherever it lies."""
    return teacher.teacher if isinstance(teacher, Elsewhere) else teacher


def is_there(device: torch.device) -> bool:
    """Whether this machine has it, and this PyTorch can use it."""
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean one device: without a number it is the first."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def moved(value: Any, device: torch.device) -> Any:
    """Every tensor in tuples and dataclasses on the device; all else as it is.

    Towards a GPU nobody waits: it keeps the order of what it is told. Towards a CPU one must, which would else read
    numbers that are still on their way.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value
