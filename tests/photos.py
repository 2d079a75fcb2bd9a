"""Pictures that nobody has labelled, and data sets of which a part is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml


def photos(folder: Path, count: int, seed: int = 0) -> Path:
    """So many PNGs of 96 px, patches of random colours: no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(small, (96, 96), interpolation=cv2.INTER_NEAREST))
    return folder


def film(file: Path, folder: Path, count: int = 4) -> Path:
    """A video of the first pictures of a folder, a second each."""
    video = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 1, (96, 96))
    for i in range(count):
        video.write(cv2.imread(str(folder / f"{i}.png")))
    video.release()
    return file


def changed(toy_data: Path, folder: Path, **changes: Any) -> Path:
    """The toy data's YAML with other values, or without the keys whose value is None."""
    content = {**yaml.safe_load(toy_data.read_text()), **changes}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file
