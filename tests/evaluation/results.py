"""Results of images that a person can compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolokd.compat.validation import ImageResult

Box = tuple[float, float, float, float]


def image(
    name: str = "1.jpg", found: list[tuple[Box, float, int]] | None = None, truth: list[tuple[Box, int]] | None = None
) -> ImageResult:
    """An image of 640 x 480 with ``found`` (box, score, class) and ``truth`` (box, class), corners in pixels."""
    found, truth = found or [], truth or []
    return ImageResult(
        file=Path("/images") / name,
        height=480,
        width=640,
        boxes=np.array([f[0] for f in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([f[1] for f in found], dtype=np.float64),
        classes=np.array([f[2] for f in found], dtype=np.int64),
        true_boxes=np.array([t[0] for t in truth], dtype=np.float64).reshape(-1, 4),
        true_classes=np.array([t[1] for t in truth], dtype=np.int64),
    )
