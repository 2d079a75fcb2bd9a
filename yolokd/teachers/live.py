"""A teacher that runs beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from yolokd.compat.checkpoint import head_info
from yolokd.compat.taps import LayerTap, reentry
from yolokd.compat.training import branches, freeze
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo, Hidden, Predictions

LARGER = "teacher_img"  # key of the batch: the same images at teacher_imgsz, where that is set
_OUTPUTS = {"scores": "class scores", "boxes": "boxes", "feats": "features"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(Protocol):
    """A function from a batch to predictions; the criterion knows nothing else of a teacher."""

    info: HeadInfo
    name: str

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """Dense predictions in the teacher's own class space, without gradient."""
        ...


def resolve_precision(wanted: str, device: torch.device, amp: bool = False, amp_bf16: bool = False) -> torch.dtype:
    """Choose the number format of the teacher's forward pass.

    Args:
        wanted: ``auto``, ``fp32``, ``bf16`` or ``fp16``. ``auto`` takes bfloat16 on a CPU that multiplies in it
            (avx512_bf16 or AMX; elsewhere it is slower than float32) and follows AMP on an accelerator.
        device: where the teacher runs.
        amp: automatic mixed precision is on.
        amp_bf16: ... in bfloat16 instead of float16.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32
    if not amp:
        return torch.float32
    return torch.bfloat16 if amp_bf16 else torch.float16


def _cpu_multiplies_bf16() -> bool:
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(check() for check in checks if check is not None)


class LiveTeacher:
    """A frozen detector, fused and in channels_last, whose head decodes nothing.

    It is a plain class, never a module: nothing of it can end up in the student's checkpoint, its optimizer or in
    ``model.train()``.

    Args:
        model: a DetectionModel; changed in place.
        device: where it runs.
        precision: see ``resolve_precision``; ``to_precision`` can lower it later.
        name: what messages call it.
    """

    def __init__(self, model: Any, device: torch.device, precision: str = "auto", name: str = "teacher") -> None:
        self.name = name
        self.info = head_info(model)
        self._model = freeze(model).to(device).to(memory_format=torch.channels_last)
        self._run: Any = self._model
        self._tap: LayerTap | None = None
        self._depth: int | None = None
        self.dtype = torch.float32
        self.to_precision(resolve_precision(precision, device))

    def to_precision(self, dtype: torch.dtype) -> None:
        """Convert the weights; the pass from a lower precision back to a higher one restores nothing."""
        self._model.to(dtype=dtype)
        self.dtype = dtype

    def open(self, layers: Sequence[int] = (), depth: int | None = None) -> None:
        """Give more than the head's outputs from now on.

        Args:
            layers: also the features of these layers.
            depth: also lend the head, entered after so many of its convolutions; None: not.
        """
        if self._tap is not None:
            self._tap.remove()
        self._tap = LayerTap(self._model, layers) if layers else None
        self._depth = depth

    def compile(self) -> None:
        """Run the network through torch.compile from now on; its first answers take long."""
        if self._run is self._model:
            self._run = torch.compile(self._model)

    @property
    def model(self) -> nn.Module:
        """The frozen network."""
        network: nn.Module = self._model
        return network

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """Run the teacher on ``batch["img"]``, ``(B, 3, H, W)`` in [0, 1], or on the larger images where it has some.

        Not in inference mode: a tensor made there cannot be saved for the backward pass of a loss.
        """
        return self.forward(batch.get(LARGER, batch["img"]))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Predictions:
        """Predictions for ``(B, 3, H, W)`` images in [0, 1]; in the teacher's precision."""
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        # Autocast would convert again what is in the wanted precision already.
        with torch.autocast(images.device.type, enabled=False):
            said = branches(self._run(images))[0]
        return replace(
            said,
            taps=self._tap.take() if self._tap is not None else None,
            reenter=self._reenter if self._depth is not None else None,
        )

    def _reenter(self, hidden: Hidden) -> Predictions:
        """The head's answer to features that are not its own; the gradient goes through it, not into it."""
        assert self._depth is not None
        return reentry(self._model, self.dtype)(hidden, self._depth)


def refuse_not_finite(predictions: Predictions, teacher: Teacher) -> None:
    """Name the outputs of a teacher that hold NaN or Inf.

    Raises:
        UserError: some do.
    """
    found = predictions.detections
    seen = predictions if found is None else replace(predictions, scores=found.scores, boxes=found.boxes)
    broken = [said for name, said in _OUTPUTS.items() if not _finite(getattr(seen, name))]
    if not broken:
        return
    # A checkpoint with NaN in it is broken; one without may only be too narrow a number format.
    dtype, model = getattr(teacher, "dtype", torch.float32), getattr(teacher, "model", None)
    low = model is not None and dtype != torch.float32 and _finite(model.state_dict().values())
    raise UserError(
        f"teacher={teacher.name}: its {' and '.join(broken)} hold NaN or Inf on training images"
        + (f" in {str(dtype).removeprefix('torch.')}." if low else "."),
        "Try teacher_precision=fp32."
        if low
        else "Take another checkpoint: this one learned nothing that can be taught.",
    )


def channels_of(teacher: Teacher) -> int:
    """Channels of the images that a teacher takes; 3 where it does not say."""
    return int(getattr(getattr(teacher, "model", None), "yaml", {}).get("channels", 3))


def refuse_channels(teacher: Teacher, channels: int) -> None:
    """Refuse images of other channels than the teacher's.

    Raises:
        UserError: they differ.
    """
    known = channels_of(teacher)
    if known != channels:
        raise UserError(
            f"teacher={teacher.name} takes images of {known} channels, the data has {channels}.",
            "Take a teacher that was trained on images with as many channels.",
        )


def is_finite(predictions: Predictions) -> bool:
    """Do the outputs of a network hold neither NaN nor Inf?"""
    return all(_finite(getattr(predictions, name)) for name in _OUTPUTS)


def _finite(output: Any) -> bool:
    tensors = [] if output is None else [output] if isinstance(output, Tensor) else output
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
