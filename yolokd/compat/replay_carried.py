"""Soft detections on their way through augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils.instance import Instances
from ultralytics.utils.metrics import bbox_ioa

Array: TypeAlias = NDArray[Any]
Labels: TypeAlias = dict[str, Any]

# The columns of a sample that has landed (see `Carried.land`).
ROW, BOX, SEEN, GAIN, SHIFT, SIZE = 0, slice(1, 5), slice(5, 9), slice(9, 11), slice(11, 13), slice(13, 15)

_HIDDEN = 0.30  # Ultralytics' own bound in copy-paste: an object of which more is pasted over is not seen any more
_MOVED = 0.05  # pixels; an edge that is farther from its place has been cut off, below that it is rounding
_TILT = 1e-4  # pixels a pixel that x may move with y


@dataclass
class Carried:
    """Soft detections on their way through augmentation, beside the labels of one image.

    Attributes:
        instances: N boxes, cut and dropped as ground truth is; pixels of the image as it is now.
        stored: ``(N, 7)`` what a box was: its row in the cache, (x1, y1, x2, y2) in pixels of the stored image, and
            that image's width and height.
        matrix: ``(N, 3, 3)`` from pixels of the stored image to pixels of the image as it is now.
    """

    instances: Any
    stored: Array
    matrix: Array

    @classmethod
    def place(
        cls,
        rows: Array,
        boxes: Array,
        mirrored: Array,
        original: tuple[int, int],
        loaded: tuple[int, int],
        polygons: bool,
    ) -> Carried:
        """Put stored boxes on an image as it was loaded.

        Args:
            rows: ``(N,)`` rows of the cache.
            boxes: ``(N, 4)`` (x1, y1, x2, y2), normalised to the stored image.
            mirrored: ``(N,)`` bool, the stored image is the mirror image.
            original: height and width of the image file.
            loaded: height and width now.
            polygons: the labels are polygons, so the boxes are made to be, too.
        """
        (height, width), (h, w) = original, loaded
        size = np.array([width, height], dtype=np.float64)
        stored = np.concatenate([rows[:, None], boxes * np.tile(size, 2), np.tile(size, (len(rows), 1))], 1)
        matrix = np.zeros((len(rows), 3, 3))
        matrix[:, 0, 0] = np.where(mirrored, -w, w) / width
        matrix[:, 0, 2] = np.where(mirrored, w, 0)
        matrix[:, 1, 1] = h / height
        matrix[:, 2, 2] = 1
        x1, y1, x2, y2 = boxes.T
        here = np.stack([np.where(mirrored, 1 - x2, x1), y1, np.where(mirrored, 1 - x1, x2), y2], 1)
        here = (here * (w, h, w, h)).astype(np.float32)
        segments = corners(here) if polygons else None
        return cls(Instances(here, segments, bbox_format="xyxy", normalized=False), stored, matrix)

    @classmethod
    def join(cls, parts: list[Carried]) -> Carried:
        """One after the other."""
        for part in parts:
            part.instances.convert_bbox("xyxy")
        return cls(
            Instances.concatenate([part.instances for part in parts]),
            np.concatenate([part.stored for part in parts]),
            np.concatenate([part.matrix for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Array) -> Carried:
        return Carried(self.instances[index], self.stored[index], self.matrix[index])

    @property
    def boxes(self) -> Array:
        """``(N, 4)`` (x1, y1, x2, y2) in pixels of the image as it is now."""
        self.instances.convert_bbox("xyxy")
        boxes: Array = self.instances.bboxes
        return boxes

    def labels(self, first: int = 0) -> Labels:
        """What a transform takes for labels; the classes count the boxes, so that one sees which it dropped."""
        return {"cls": np.arange(first, first + len(self))[:, None], "instances": self.instances}

    def after(self, labels: Labels, matrix: Array | None = None) -> Carried:
        """What a transform has left of ``labels()``.

        Args:
            labels: the labels after the transform.
            matrix: ``(3, 3)`` what it did to the image; None: this is in ``self.matrix`` already.
        """
        index = labels["cls"][:, 0]
        moved = self.matrix[index]
        return Carried(labels["instances"], self.stored[index], moved if matrix is None else matrix @ moved)

    def mirrored(self, width: int) -> Carried:
        """A copy that is flipped left-right, in an image so many pixels wide."""
        copy = self[np.arange(len(self))]
        copy.instances.fliplr(width)
        return Carried(copy.instances, copy.stored, axes((-1, width)) @ copy.matrix)

    def uncovered(self, pasted: Array) -> Carried:
        """Without the boxes that hide behind one of the ``(K, 4)`` pasted areas."""
        return self[(bbox_ioa(pasted, self.boxes) < _HIDDEN).all(0)]

    def land(self, width: int, height: int) -> Array:
        """Where the boxes are at the end, as plain numbers that a worker can hand over.

        Of the two sets of detections, those of the image and those of its mirror image, the one stays that is the
        right way round: what a flipped sample gets is what the teacher said of the flipped image. (An image turned by
        more than a right angle is nearer to its mirror image upside down.)

        Args:
            width: of the finished image, pixels.
            height: of the finished image, pixels.

        Returns:
            ``(M, 15)`` float64: row of the cache; (x1, y1, x2, y2) normalised to the finished image; for each edge 1
            where it has not been cut off; gain (x, y) and shift (x, y) from coordinates normalised to the stored
            image to those normalised to the finished one, the gain 0 where the image was turned or sheared; width and
            height of the original image.
        """
        right = self.matrix[:, 0, 0] > 0
        boxes, stored, m = self.boxes[right], self.stored[right], self.matrix[right]
        whole = project(corners(stored[:, 1:5]), m)
        seen = np.abs(np.concatenate([whole.min(1), whole.max(1)], 1) - boxes) < _MOVED
        size = stored[:, 5:7]
        # A perspective shows here, too: it is taken about the middle of the image, not about its corner.
        tilt = np.abs(m[:, [0, 1], [1, 0]]).max(1)
        gain = m[:, [0, 1], [0, 1]] * size / (width, height) * (tilt < _TILT)[:, None]
        shift = m[:, :2, 2] / (width, height)
        return np.concatenate([stored[:, :1], boxes / np.tile((width, height), 2), seen, gain, shift, size], 1)


def project(points: Array, matrix: Array) -> Array:
    """Move ``(N, K, 2)`` points by one ``(3, 3)`` matrix, or by ``(N, 3, 3)``."""
    moved = np.concatenate([points, np.ones_like(points[..., :1])], 2) @ np.swapaxes(matrix, -1, -2)
    projected: Array = moved[..., :2] / moved[..., 2:]
    return projected


def corners(boxes: Array) -> Array:
    """The ``(N, 4, 2)`` corners of ``(N, 4)`` boxes, going round."""
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]


def axes(x: tuple[float, float], y: tuple[float, float] = (1, 0)) -> Array:
    """The matrix of x to x[0] * x + x[1], and y likewise."""
    return np.array([[x[0], 0, x[1]], [0, y[0], y[1]], [0, 0, 1]], dtype=np.float64)
