"""Images and videos of which the content is known, and the state of a folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def image(file: Path, size: tuple[int, int] = (40, 60), seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    return file


def film(file: Path, frames: int = 30, fps: float = 10, size: tuple[int, int] = (64, 48)) -> Path:
    """Motion JPEG, which every OpenCV writes; frame i has about the brightness 5 * i."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 5 * i, np.uint8))
    writer.release()
    return file


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each file, also of the hidden ones."""
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}
