"""Images with boxes drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from yolokd.compat.files import atomic_replace
from yolokd.compat.images import read_letterboxed

Picture = NDArray[np.uint8]  # (H, W, 3) BGR
Colour = tuple[int, int, int]  # blue, green, red
SIDE = 640  # pixels, the longer one
QUALITY = 85  # JPEG's, percent
# A picture is shown at half its size in a strip of four, and is to be read there.
_FONT, _SCALE, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.8, 28  # pixels a line of text
_DARK, _WHITE = (32, 32, 32), (255, 255, 255)


class Frame(NamedTuple):
    """A box to draw.

    Attributes:
        box: ``(4,)`` corners in pixels of the original image.
        colour: blue, green, red.
        text: above the box; empty: none.
        thick: it is what the picture is about.
    """

    box: NDArray[np.float64]
    colour: Colour
    text: str = ""
    thick: bool = False


def picture(file: Path, frames: Sequence[Frame], caption: str = "") -> Picture | None:
    """Draw boxes on an image, and write a caption below it.

    Args:
        file: the image; it is scaled to 640 px on the longer side.
        frames: the later ones lie above the earlier ones.
        caption: lines are broken where they are full; letters beyond ASCII become ``?``.

    Returns:
        ``(H, W, 3)`` uint8 BGR; None where the file is missing or is no image.
    """
    read = read_letterboxed(file, SIDE)
    if read is None:
        return None
    (height, width), (top, left) = read.resized, read.pad
    rgb = read.image[:, top : top + height, left : left + width]
    drawn = np.ascontiguousarray(rgb.flip(0).permute(1, 2, 0).numpy())
    scale = np.array([width / read.shape[1], height / read.shape[0]] * 2)
    for frame in frames:
        x1, y1, x2, y2 = (int(v) for v in np.rint(frame.box * scale))
        cv2.rectangle(drawn, (x1, y1), (x2, y2), frame.colour, 3 if frame.thick else 1)
    for frame in frames:  # after all boxes, so that none crosses a text
        if frame.text:
            x, y = (int(v) for v in np.rint(frame.box * scale)[:2])
            wide = _width(frame.text) + 4
            x, y = max(min(x, width - wide), 0), max(y - _LINE, 0)
            cv2.rectangle(drawn, (x, y), (x + wide, y + _LINE), frame.colour, cv2.FILLED)
            cv2.putText(drawn, frame.text, (x + 2, y + _LINE - 7), _FONT, _SCALE, (0, 0, 0), 2, cv2.LINE_AA)
    lines = _broken(caption, width - 8)
    strip = np.full(((_LINE * len(lines) + 6) * bool(lines), width, 3), _DARK, np.uint8)
    for i, line in enumerate(lines):
        cv2.putText(strip, line, (4, _LINE * (i + 1) - 5), _FONT, _SCALE, _WHITE, 2, cv2.LINE_AA)
    return np.concatenate([drawn, strip])


def save_picture(path: Path, drawn: Picture) -> None:
    """Write a picture as JPEG, whole or not at all."""
    _, encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    atomic_replace(path, lambda partial: partial.write_bytes(encoded.tobytes()))


def _width(text: str) -> int:
    """Pixels; OpenCV 4 and 5 write in different fonts."""
    return int(cv2.getTextSize(text, _FONT, _SCALE, 2)[0][0])


def _broken(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
