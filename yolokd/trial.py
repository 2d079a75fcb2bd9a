"""Run teacher and student on a few real images: is the teacher sane, how long does a step take, how much memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.compat.step import plain_step
from yolokd.errors import UserError
from yolokd.predictions import Predictions
from yolokd.teachers.live import LiveTeacher

_OUTPUTS = {"scores": "class scores", "boxes": "boxes", "feats": "features"}


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


def refuse_not_finite(predictions: Predictions, teacher: LiveTeacher) -> None:
    """Name the outputs of a teacher that hold NaN or Inf.

    Raises:
        UserError: some do.
    """
    broken = [said for name, said in _OUTPUTS.items() if not _finite(getattr(predictions, name))]
    if not broken:
        return
    # A checkpoint with NaN in it is broken; one without may only be too narrow a number format.
    low = teacher.dtype != torch.float32 and _finite(list(teacher.model.state_dict().values()))
    raise UserError(
        f"teacher={teacher.name}: its {' and '.join(broken)} hold NaN or Inf on real training images"
        + (f" in {str(teacher.dtype).removeprefix('torch.')}." if low else "."),
        "Try teacher_precision=fp32."
        if low
        else "Take another checkpoint: this one learned nothing that can be taught.",
    )


def _finite(output: Any) -> bool:
    tensors = [] if output is None else [output] if isinstance(output, Tensor) else list(output)
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


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
