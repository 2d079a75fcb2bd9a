"""Pictures inside the page: made as small as the page needs them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

# Longest side in pixels and JPEG quality, from what a large screen can use to what still shows what is there. The first
# that fits is taken.
LADDER = ((640, 82), (480, 78), (400, 74), (320, 70), (240, 62), (160, 50))


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        uri: a ``data:`` URI.
        width: pixels.
        height: pixels.
    """

    uri: str
    width: int
    height: int


def encode(file: Path, side: int, quality: int) -> Picture | None:
    """Re-encode an image as JPEG; None where there is no readable one.

    Args:
        file: of any format that OpenCV reads. (Pillow would do, but Ultralytics has patched its ``open``: of a file
            that it does not know it would install a package.)
        side: the longest side at most, pixels; a smaller image keeps its size.
        quality: of the JPEG.
    """
    try:
        image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    if image is None:
        return None
    scale = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    how = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    data = cv2.imencode(".jpg", image, how)[1].tobytes()
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", width, height)
