"""Answers that are a set of boxes: the parts of an RT-DETR, and Ultralytics' way of giving boxes to anchors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.tal import TaskAlignedAssigner

from yolokd.compat.refusals import DETR
from yolokd.compat.taps import layer_info
from yolokd.predictions import HeadInfo

# Of Ultralytics' v8DetectionLoss (utils/loss.py), for the branch that teaches the pyramid.
TOPK, ALPHA, BETA = 10, 0.5, 6.0


class _Owners(TaskAlignedAssigner):  # type: ignore[misc]  # Ultralytics is untyped
    """Says which box each anchor is given and how well it fits; targets for every class would cost more than that."""

    def get_targets(self, gt_labels: Tensor, gt_bboxes: Tensor, target_gt_idx: Tensor, fg_mask: Tensor) -> Any:
        """One score an anchor in the place of one a class."""
        return target_gt_idx, target_gt_idx[..., None], (fg_mask > 0)[..., None].to(gt_bboxes.dtype)


def assign(
    scores: Tensor, boxes: Tensor, anchors: Tensor, strides: Tensor, labels: Tensor, targets: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Give boxes to anchors by Ultralytics' task-aligned assigner, with the settings of its detection loss.

    Args:
        scores: ``(B, A, C)`` the student's class probabilities.
        boxes: ``(B, A, 4)`` its boxes, (x1, y1, x2, y2) in pixels.
        anchors: ``(A, 2)`` anchor points (x, y) in pixels.
        strides: ``(A,)`` pixels a cell of each anchor's level.
        labels: ``(B, N)`` class of each box, an index into C.
        targets: ``(B, N, 4)`` the boxes to give away, (x1, y1, x2, y2) in pixels; N at least 1.
        valid: ``(B, N)`` bool, False where a row is only padding.

    Returns:
        ``(B, A)`` row of the box that the anchor was given, -1 for none, int64; and ``(B, A)`` the alignment of the
        two, 0 for none, which compares the anchors of one box.
    """
    assigner = _Owners(
        topk=TOPK, num_classes=scores.shape[2], alpha=ALPHA, beta=BETA, stride=torch.unique(strides).tolist()
    )
    mask = valid[..., None].to(scores.dtype)
    _, _, aligned, foreground, row = assigner(scores, boxes, anchors, labels[..., None], targets, mask)
    return torch.where(foreground, row, -1), aligned.squeeze(-1)


def is_detr(model: Any) -> bool:
    """Whether a loaded model is an RT-DETR."""
    return type(model.model[-1]).__name__ == DETR


def detr_info(model: Any) -> HeadInfo:
    """The facts of an RT-DETR: its levels are those of the encoder that enter the decoder.

    Args:
        model: an RTDETRDetectionModel; it is left as it was found.
    """
    strides, widths = layer_info(model, encoder_levels(model), channels=model.yaml.get("channels", 3))
    names = {int(i): str(name) for i, name in model.names.items()}
    return HeadInfo(names, strides, widths, reg_max=1, end2end=False)


def encoder_levels(model: Any) -> list[int]:
    """Numbers of the layers that enter the decoder of an RT-DETR, finest level first."""
    return list(model.model[-1].f)


def freeze_detr(model: Any) -> Any:
    """Make an RT-DETR a teacher: fused, in eval mode, without gradient, its decoder in float32 for good.

    A box is a share of the image. In bfloat16 that is exact to 1/256, two pixels and a half at 640 px, and the
    positions of the anchors, which the decoder works out in the number format of its input, are no better.

    Args:
        model: an RTDETRDetectionModel, changed in place.
    """
    model.fuse(verbose=False)
    model.eval().requires_grad_(False)
    model.model[-1].register_forward_pre_hook(_in_float32)
    return model


def _in_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return [level.float() for level in args[0]], *args[1:]


def lower_encoder(model: Any, dtype: torch.dtype) -> None:
    """Convert what comes before the decoder of a frozen RT-DETR."""
    for layer in model.model[:-1]:  # not the whole and then the decoder back: its weights would have been rounded
        layer.to(dtype=dtype)


def queries(output: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Read the output of an RT-DETR in eval mode.

    Its first item is sorted by query and class and knows one class a row, so the second is read: the decoder's last
    layer as it is.

    Args:
        output: what the model returned.
        height: pixels of the input.
        width: pixels of the input.

    Returns:
        ``(B, Q, 4)`` boxes (x1, y1, x2, y2) in pixels and ``(B, Q, C)`` class probabilities of all Q queries.
    """
    boxes, logits = output[1][0][-1], output[1][1][-1]
    return xywh2xyxy(boxes) * boxes.new_tensor([width, height, width, height]), logits.sigmoid()
