"""Run teacher and student on a few real images: is the teacher sane, how long does a step take, how much memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolokd.compat.step import plain_step
from yolokd.errors import UserError
from yolokd.predictions import Predictions
from yolokd.teachers.live import LiveTeacher, refuse_not_finite


@dataclass(frozen=True)
class Trial:
    """What a trial showed.

    Attributes:
        teacher: the teacher's predictions on the images.
        teacher_seconds: its forward pass, once warm.
        step_seconds: forward, detection loss and backward of the student alone, once warm.
        memory: the memory measured, in words, with how it was measured.
    """

    teacher: Predictions
    teacher_seconds: float
    step_seconds: float
    memory: str


def run_trial(teacher: LiveTeacher, student: nn.Module, images: Tensor, *, amp: torch.dtype | None = None) -> Trial:
    """Run both models, twice: once to look and to warm up, once to measure.

    Args:
        teacher: on the device of the images.
        student: on the device of the images; thrown away afterwards, its batch statistics move.
        images: ``(B, C, H, W)`` float32 in [0, 1].
        amp: number format of the student's automatic mixed precision; None is float32.

    Raises:
        UserError: teacher or student gives NaN or Inf.
    """
    student.train().requires_grad_(True)
    cuda = images.device.type == "cuda"
    before = torch.cuda.memory_allocated(images.device) if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(images.device)

    def step() -> float:
        with torch.autocast(images.device.type, dtype=amp, enabled=amp is not None):
            return plain_step(student, images)

    predictions = teacher({"img": images})
    refuse_not_finite(predictions, teacher)
    kept = _KeptTensors(student)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        if not math.isfinite(step()):
            raise UserError("student=: its loss is NaN or infinite on real training images.", "Take another student.")
    seconds = _seconds(lambda: teacher({"img": images}), cuda), _seconds(step, cuda)
    if cuda:
        peak = torch.cuda.max_memory_allocated(images.device) - before
        memory = f"{_megabytes(peak)} at the peak of a step of {len(images)} images on the GPU, weights not counted"
    else:
        weights = sum(t.nbytes for t in teacher.model.state_dict().values())
        each = _megabytes(kept.bytes // len(images))
        memory = f"the teacher's weights take {_megabytes(weights)}, the student's backward pass keeps {each} an image"
    return Trial(predictions, *seconds, memory)


def _seconds(call: Callable[[], object], cuda: bool) -> float:
    """The faster of two calls: what else the machine does only ever adds time."""
    times = []
    for _ in range(2):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


class _KeptTensors:
    """Counts the bytes that a forward pass keeps for its backward pass, parameters not counted."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """The hook: autograd hands over each tensor that it keeps."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
