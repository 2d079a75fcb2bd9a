"""A teacher that does not run: what it once said of each image, carried through the augmentation of this batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from yolokd.compat.replay import Landed, landed
from yolokd.predictions import Predictions, SoftDetections
from yolokd.teachers.cache import Cache, Stored

# Pixels by which the whole image may be longer or shorter than it would be if its bins were as long as the student's:
# Ultralytics rounds the sides of an image that it loads to whole pixels.
_ROUNDED = 1.0


class ReplayTeacher:
    """Give the stored detections of the images in a batch, where the augmentation has put them.

    A box is moved and cut as a ground-truth box is. Its class probabilities stay. Its bins are measured in strides, so
    they hold only where the image was moved or flipped, and a stored bin is as long as a stride of the student;
    elsewhere the expected distance to the edges of ``boxes`` has to do.

    Args:
        cache: the detections.
        strides: pixels a cell of each of the student's levels.
        name: what messages call it.
    """

    def __init__(self, cache: Cache, strides: tuple[int, ...], name: str = "teacher_cache") -> None:
        self.name = name
        self.info = cache.info
        self.cache = cache
        self._strides = strides

    def to_precision(self, dtype: torch.dtype) -> None:
        """Nothing to convert: a cache is read in float32."""

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """The detections of a batch whose data set was attached to the cache.

        Args:
            batch: after ``preprocess_batch``; ``img`` is ``(B, 3, H, W)``, ``replay`` what the samples brought along.

        Raises:
            ValueError: the batch comes from another data set.
        """
        images = batch["img"]
        at = landed(batch)
        size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32)  # after multi_scale
        stored = self.cache.take(at.rows.numpy())
        bins, points, strides = self._bins(at, stored, size)
        scores = torch.as_tensor(stored.scores, dtype=torch.float32)
        said = (at.boxes * size.repeat(2), scores, at.image, at.edges, bins, points, strides)
        here = (None if value is None else value.to(images.device) for value in said)
        return Predictions(None, None, None, detections=SoftDetections(*here))  # type: ignore[arg-type]

    def _bins(self, at: Landed, stored: Stored, size: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Bins, points and strides as `SoftDetections` has them."""
        if stored.bins is None:
            return None, None, None
        bins = torch.as_tensor(stored.bins, dtype=torch.float32)
        edges = bins.view(-1, 4, bins.shape[1] // 4)  # left, top, right, bottom
        upside_down = at.gain[:, 1] < 0
        bins = torch.where(upside_down[:, None, None], edges[:, [0, 3, 2, 1]], edges).flatten(1)
        points = (torch.as_tensor(stored.points, dtype=torch.float32) * at.gain + at.shift) * size
        # Sides of the original image in pixels of the student's input; 0 where it was turned.
        side = at.gain.abs() * size  # (N, 2)
        a_bin = torch.as_tensor(stored.strides, dtype=torch.float32)[:, None] * side / at.size
        levels = torch.tensor(self._strides, dtype=torch.float32)
        off = (a_bin[:, :, None] / levels - 1).abs() * side[:, :, None]  # (N, 2, levels)
        same = ((off <= _ROUNDED) & (side > 0)[:, :, None]).all(1)
        return bins, points, (same * levels).sum(1)
