"""One image as a data set of Ultralytics reads it, letterboxed, without the data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.data.base import BaseDataset
from ultralytics.utils.instance import Instances

_CV2_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}


class Letterboxed(NamedTuple):
    """An image in the middle of a square, and where it lies there; sizes are (height, width) in pixels."""

    image: Tensor  # (C, imgsz, imgsz) uint8, RGB
    shape: tuple[int, int]  # of the file, turned as its EXIF says
    resized: tuple[int, int]  # inside the square
    pad: tuple[int, int]  # (top, left) of the image in the square


def read_letterboxed(file: str | Path, imgsz: int, channels: int = 3) -> Letterboxed | None:
    """Read an image through Ultralytics' own reader and letterbox.

    As in training without augmentation the data set resizes (the short side is rounded up) and LetterBox only pads.
    ``predict`` lets LetterBox resize as well, which rounds the short side to the nearest pixel. An ``.npy`` beside the
    image is not looked at: it need not be the same image.

    Args:
        file: the image file.
        imgsz: side of the square, pixels.
        channels: as the data set's YAML says.

    Returns:
        None where the file is missing or is no image.
    """
    reader: Any = SimpleNamespace(
        ims=[None],
        im_files=[str(file)],
        npy_files=[Path(file) / "none.npy"],  # never exists: the image is a file
        cache=None,
        channels=channels,
        cv2_flag=_CV2_FLAGS.get(channels, cv2.IMREAD_UNCHANGED),
        imgsz=imgsz,
        augment=False,
        prefix="",
    )
    try:
        image, shape, resized = BaseDataset.load_image(reader, 0)
    except FileNotFoundError:
        return None
    nothing = Instances(np.zeros((0, 4), np.float32), bbox_format="xywh", normalized=True)
    labels = LetterBox((imgsz, imgsz))({"img": image, "ratio_pad": (1.0, 1.0), "instances": nothing})
    left, top = labels["ratio_pad"][1]
    ordered = labels["img"][..., ::-1] if channels == 3 else labels["img"]  # OpenCV reads BGR
    chw = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
    return Letterboxed(chw, tuple(shape), tuple(resized), (int(top), int(left)))
