"""One training step of a detector, for measuring what a step costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace


def plain_step(student: DetectionModel, images: Tensor) -> float:
    """Forward, detection loss and backward, with one made-up box an image; gradients are dropped again.

    Args:
        student: a detector in training mode, on the device of the images; its batch statistics move.
        images: ``(B, C, H, W)`` in [0, 1].

    Returns:
        the loss; NaN or infinite where the student is broken.
    """
    student.args = IterableSimpleNamespace(**DEFAULT_CFG_DICT)
    count, device = images.shape[0], images.device
    batch: dict[str, Any] = {
        "img": images,
        "cls": torch.zeros(count, 1, device=device),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]], device=device).repeat(count, 1),
        "batch_idx": torch.arange(count, device=device, dtype=torch.float32),
    }
    loss = student.loss(batch)[0].sum()
    loss.backward()
    student.zero_grad(set_to_none=True)
    return float(loss.detach())
