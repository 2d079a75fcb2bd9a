"""Images that are loaded at the teacher's size and reduced for the student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from yolokd.errors import UserError


@contextmanager
def image_side(args: Any, side: int | None) -> Iterator[None]:
    """Let a data set that is built meanwhile load and augment its images at another size.

    Args:
        args: Ultralytics' settings, from which the data set reads ``imgsz``.
        side: pixels; None leaves the settings alone.
    """
    before = args.imgsz
    args.imgsz = side or before
    try:
        yield
    finally:
        args.imgsz = before


def asked_side(imgsz: Any) -> int:
    """The side that ``imgsz=`` asks for, in pixels; of two the larger, 640 where nothing is said.

    Raises:
        UserError: it is no size.
    """
    try:
        side = max(int(size) for size in imgsz) if isinstance(imgsz, (list, tuple)) else int(imgsz or 640)
    except (TypeError, ValueError):
        side = 0
    if side < 1:
        raise UserError(f"imgsz={imgsz} is not a size in pixels.", "Write e.g. imgsz=640.")
    return side


def training_side(imgsz: int, strides: Sequence[int]) -> int:
    """What Ultralytics makes of ``imgsz``, in pixels: the next multiple of the coarsest stride, and of 32."""
    step = max([32, *strides])
    return -(-imgsz // step) * step


def reduced(images: Tensor, ratio: float) -> Tensor:
    """Reduce uint8 images by averaging the pixels that fall together.

    Args:
        images: ``(B, C, H, W)`` uint8.
        ratio: of the sides, above 1.

    Returns:
        ``(B, C, H / ratio, W / ratio)`` uint8.
    """
    size = [round(side / ratio) for side in images.shape[-2:]]
    return torch.stack([F.interpolate(one[None].float(), size, mode="area")[0].round().byte() for one in images])


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 images as float32 in [0, 1], with the given (H, W)."""
    scaled = images.float() / 255
    if tuple(scaled.shape[-2:]) == tuple(size):
        return scaled
    return F.interpolate(scaled, tuple(size), mode="bilinear", align_corners=False)
