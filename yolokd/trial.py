"""Run teacher and student on a few real images: is the teacher sane, how long does a step take, how much memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolokd.compat.boxes import anchor_points
from yolokd.compat.checkpoint import head_info
from yolokd.compat.step import plain_step
from yolokd.compat.training import branches
from yolokd.errors import UserError
from yolokd.levels import anchors_of, take_levels
from yolokd.predictions import Predictions
from yolokd.teachers.live import LARGER
from yolokd.teachers.panel import Panel


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


def run_trial(
    panel: Panel, student: nn.Module, images: Tensor, larger: Tensor | None = None, *, amp: torch.dtype | None = None
) -> Trial:
    """Run both sides, twice: once to look and to warm up, once to measure.

    Args:
        panel: the teachers, on the device of the images or elsewhere; then their memory is not counted.
        student: on the device of the images; thrown away afterwards, its batch statistics move.
        images: ``(B, C, H, W)`` float32 in [0, 1].
        larger: the same at ``teacher_imgsz``.
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

    batch = {"img": images} if larger is None else {"img": images, LARGER: larger}
    said, anchors, strides = _students(panel, student, images)

    def ask() -> Predictions:
        answer = panel(batch, said, anchors, strides)
        assert answer is not None  # a first one is refused where it is not finite
        return answer

    predictions = ask()
    kept = _KeptTensors(student)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        if not math.isfinite(step()):
            raise UserError("student=: its loss is NaN or infinite on real training images.", "Take another student.")
    seconds = _seconds(ask, cuda), _seconds(step, cuda)
    if cuda:
        peak = torch.cuda.max_memory_allocated(images.device) - before
        memory = f"{_megabytes(peak)} at the peak of a step of {len(images)} images on the GPU, weights not counted"
    else:
        models = [m for view in panel.views if (m := getattr(view.teacher, "model", None)) is not None]
        weights = sum(t.nbytes for model in models for t in model.state_dict().values())
        each = _megabytes(kept.bytes // len(images))
        memory = f"the teacher's weights take {_megabytes(weights)}, the student's backward pass keeps {each} an image"
    return Trial(predictions, *seconds, memory)


@torch.no_grad()
def _students(panel: Panel, student: nn.Module, images: Tensor) -> tuple[Predictions, Tensor, Tensor]:
    """What the student says of the images at the levels that are taught, with their anchors and strides."""
    info = head_info(student)
    said = branches(student(images))[0]
    assert said.feats is not None
    anchors, strides = anchor_points(said.feats, info.strides)
    sizes = [(f.shape[2], f.shape[3]) for f in said.feats]
    index = anchors_of(sizes, panel.levels)
    return take_levels(said, sizes, panel.levels), anchors[index], strides[index]


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
