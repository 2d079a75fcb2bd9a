"""What the outputs of an exported detector mean: found from names, shapes and values, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from yolokd.compat.boxes import anchor_points, encode
from yolokd.errors import UserError
from yolokd.layout import CONFIDENCE, gather_detections
from yolokd.predictions import Predictions

# Corners or centre and sides, in pixels or (n) in shares of the image: Ultralytics' own words.
BOX_FORMATS = ("xyxy", "xywh", "xyxyn", "xywhn")
_PYRAMIDS = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64))
_CERTAIN = 1e-6  # a logit must be finite


class Reading(Protocol):
    """Turns the outputs of a batch into predictions.

    Attributes:
        strides: pixels a cell of each level of a dense output; empty without a grid.
        box_format: one of ``BOX_FORMATS``; None of a grid, or while it has not been found out.
    """

    strides: tuple[int, ...]

    @property
    def box_format(self) -> str | None:
        """It may be found out by the first boxes only."""
        ...

    def __call__(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Predictions:
        """Read the outputs for images of ``size`` (height, width) pixels."""
        ...


def find_reading(
    outputs: Mapping[str, Tensor],
    size: tuple[int, int],
    classes: int,
    metadata: Mapping[str, Any],
    name: str,
    box_format: str | None = None,
    most: int = 100,
) -> Reading:
    """Say how outputs are to be read.

    Known are Ultralytics' detect exports, ``(B, 4 + C, A)`` on a grid, ``(B, N, 6)`` with ``end2end`` or ``nms``
    and RT-DETR's, and separate outputs of boxes ``(B, N, 4)`` with scores ``(B, N, C)``, or with scores ``(B, N)``
    and labels ``(B, N)``.

    Args:
        outputs: by name, of any images.
        size: height and width of those in pixels.
        classes: C.
        metadata: what the file says of itself.
        name: what messages call the teacher.
        box_format: one of ``BOX_FORMATS``; None takes what Ultralytics writes, else finds it out from the first boxes.
        most: detections kept of an image.

    Raises:
        UserError: the outputs are of none of these kinds.
    """
    first = next(iter(outputs.values()))
    detr = metadata.get("head") == "RTDETRDecoder"
    if len(outputs) == 1 and first.ndim == 3:
        for strides in _PYRAMIDS:
            if first.shape[1:] == (4 + classes, sum((size[0] // s) * (size[1] // s) for s in strides)) and not detr:
                return _Grid(strides)
        if first.shape[2] == 6:
            if box_format is None and metadata.get("author") == "Ultralytics":
                box_format = "xywhn" if detr else "xyxy"
            return _Rows(_Boxes(box_format, name), classes, name, most)
    boxes, scores, labels = _find_separate(outputs, classes)
    if boxes is None or scores is None:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in outputs.items())
        raise UserError(
            f"{name} gives {shapes} for {classes} classes, which yolokd cannot read.",
            "It reads Ultralytics' detect exports, and outputs named boxes, scores and labels.",
        )
    return _Separate((boxes, scores, labels), _Boxes(box_format, name), classes, name, most)


def _find_separate(outputs: Mapping[str, Tensor], classes: int) -> tuple[str | None, str | None, str | None]:
    """Names of the outputs that hold boxes, scores and (None: not needed) labels; None, None where it is not clear."""
    nothing = None, None, None
    boxes = [key for key in outputs if "box" in key.lower()]
    boxes = boxes or [key for key, value in outputs.items() if value.shape[-1] == 4]
    if len(boxes) != 1 or outputs[boxes[0]].shape[-1] != 4:
        return nothing
    rest = {key: value for key, value in outputs.items() if key != boxes[0]}
    labels = [key for key, value in rest.items() if "label" in key.lower() or not value.is_floating_point()]
    scores = [key for key in rest if key not in labels]
    if len(scores) != 1 or len(labels) > 1:
        return nothing
    places = outputs[boxes[0]].shape[:-1]
    if not labels and rest[scores[0]].shape == (*places, classes):
        return boxes[0], scores[0], None
    if labels and all(value.shape == places for value in rest.values()):
        return boxes[0], scores[0], labels[0]
    return nothing


class _Grid:
    """Ultralytics' raw export: centre, sides and class probabilities at each anchor; the distribution is lost."""

    box_format = None

    def __init__(self, strides: tuple[int, ...]) -> None:
        self.strides = strides

    def __call__(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Predictions:
        output = next(iter(outputs.values())).float()  # (B, 4 + C, A)
        levels = tuple(output.new_empty(1, 1, size[0] // s, size[1] // s) for s in self.strides)
        points, strides = anchor_points(levels, self.strides)
        distances = encode(_corners(output[:, :4].transpose(1, 2)), points, strides)
        return Predictions(output[:, 4:].logit(_CERTAIN), distances.transpose(1, 2), None)


class _Rows:
    """A row a detection: box, score, class."""

    strides: tuple[int, ...] = ()

    def __init__(self, boxes: _Boxes, classes: int, name: str, most: int) -> None:
        self._boxes, self._classes, self._name, self._most = boxes, classes, name, most

    @property
    def box_format(self) -> str | None:
        """How the boxes are written down."""
        return self._boxes.form

    def __call__(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Predictions:
        rows = next(iter(outputs.values())).float()
        if (rows[..., 5] != rows[..., 5].round()).any():  # older exports of an RT-DETR with two classes
            raise UserError(
                f"{self._name} gives six numbers a row, and the last is no class: it is not (box, score, class).",
                "Export it again, with the Ultralytics that is installed.",
            )
        scores = _probabilities(rows[..., 4], self._name)
        scores = _by_class(rows[..., :4], scores, rows[..., 5], self._classes, self._name)
        boxes = self._boxes(rows[..., :4], size)
        return Predictions(None, None, None, detections=gather_detections(boxes, scores, CONFIDENCE, self._most))


class _Separate:
    """Boxes, and scores of all classes or of the one that a label names."""

    strides: tuple[int, ...] = ()

    def __init__(self, keys: tuple[str, str, str | None], boxes: _Boxes, classes: int, name: str, most: int) -> None:
        self._keys, self._boxes, self._classes, self._name, self._most = keys, boxes, classes, name, most

    @property
    def box_format(self) -> str | None:
        """How the boxes are written down."""
        return self._boxes.form

    def __call__(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Predictions:
        boxes, scores = outputs[self._keys[0]].float(), _probabilities(outputs[self._keys[1]].float(), self._name)
        if self._keys[2] is not None:
            scores = _by_class(boxes, scores, outputs[self._keys[2]], self._classes, self._name)
        found = gather_detections(self._boxes(boxes, size), scores, CONFIDENCE, self._most)
        return Predictions(None, None, None, detections=found)


def _probabilities(scores: Tensor, name: str) -> Tensor:
    """The scores, if they are between 0 and 1.

    Raises:
        UserError: some are not; logits can be meant for a sigmoid or for a softmax.
    """
    if (scores < 0).any() or (scores > 1).any():
        low, high = float(scores.min()), float(scores.max())
        raise UserError(
            f"{name}: its scores go from {low:.3g} to {high:.3g} and so are no probabilities.",
            "Export it with its sigmoid or softmax.",
        )
    return scores


def _by_class(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, name: str) -> Tensor:
    """A probability for each class from one class a row.

    Rows with the very same box (an end2end head gives one a class) become one detection: the first has the scores of
    all of them, the others 0.

    Args:
        boxes: ``(B, N, 4)``.
        scores: ``(B, N)``.
        labels: ``(B, N)`` class indices.
        classes: C.
        name: what messages call the teacher.

    Returns:
        ``(B, N, C)``; 0 for a class that no row names.

    Raises:
        UserError: a label names no class.
    """
    labels = labels.round().long() if labels.is_floating_point() else labels.long()
    if not labels.numel():
        return scores.new_zeros(*scores.shape, classes)
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"{name} gives labels from {int(labels.min())} to {int(labels.max())}, with names for {classes} classes.",
            "Name all its classes in order, from 0: teacher_names=person,bicycle,...",
        )
    first = (boxes[:, :, None] == boxes[:, None]).all(-1).int().argmax(2)  # (B, N)
    one = F.one_hot(labels, classes) * scores[..., None]
    return torch.zeros_like(one).scatter_reduce(1, first[..., None].expand_as(one), one, "amax")


class _Boxes:
    """Brings boxes to corners in pixels; how they are written down is decided once, by the first that are seen."""

    def __init__(self, form: str | None, name: str) -> None:
        self.form, self._name = form, name

    def __call__(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, N, 4)`` in any of ``BOX_FORMATS`` to (x1, y1, x2, y2) in pixels."""
        real = boxes[boxes.ne(0).any(-1) & boxes.isfinite().all(-1)]  # without padding
        if not len(real):
            return boxes
        self.form = self.form or self._find(real, size)
        if self.form.startswith("xywh"):
            boxes = _corners(boxes)
        return boxes * boxes.new_tensor([size[1], size[0]] * 2) if self.form.endswith("n") else boxes

    def _find(self, boxes: Tensor, size: tuple[int, int]) -> str:
        """The format of ``(K, 4)`` boxes.

        Nothing in pixels lies within two pixels. Corners are in order; a box made of centre and sides is in the image.

        Raises:
            UserError: the boxes could be meant either way.
        """
        shares = bool(boxes.abs().max() <= 2)
        whole = boxes if shares else boxes / boxes.new_tensor([size[1], size[0]] * 2)
        ordered = (whole[:, 2:] >= whole[:, :2]).all(1).float().mean()
        ends = _corners(whole)
        inside = ((ends > -0.1) & (ends < 1.1)).all(1).float().mean()
        if (ordered > 0.99) == (inside > 0.99):
            raise UserError(
                f"{self._name}: its boxes could be corners as well as centre and sides.",
                f"Say which: teacher_boxes= one of {', '.join(BOX_FORMATS)} (n: shares of the image, not pixels).",
            )
        return ("xyxy" if ordered > 0.99 else "xywh") + ("n" if shares else "")


def _corners(boxes: Tensor) -> Tensor:
    """(x, y, width, height) with the centre at (x, y) to (x1, y1, x2, y2)."""
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)
