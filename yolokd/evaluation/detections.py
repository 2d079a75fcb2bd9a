"""What a model found in every image of a split, kept in one file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from yolokd.compat.files import atomic_replace
from yolokd.compat.validation import ImageResult
from yolokd.errors import UserError

VERSION = 1


def save(path: str | Path, images: Sequence[ImageResult], names: Mapping[int, str]) -> None:
    """Write the detections and labels of a split: so that each number can be computed again without the model.

    A compressed ``.npz`` of plain arrays. Numbers are kept exactly (float64, int64), the order of the images too.
    Written whole or not at all.

    Args:
        path: the file; its folder is there.
        images: detections and labels in pixels of the original images.
        names: class names by index.
    """
    columns = {
        "found": np.array([len(image.boxes) for image in images], dtype=np.int64),
        "true": np.array([len(image.true_boxes) for image in images], dtype=np.int64),
        "sizes": np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(-1, 2),
        "files": np.array([str(image.file) for image in images], dtype=np.str_),
        "boxes": np.concatenate([np.zeros((0, 4)), *(image.boxes for image in images)]),
        "scores": np.concatenate([np.zeros(0), *(image.scores for image in images)]),
        "classes": np.concatenate([np.zeros(0, np.int64), *(image.classes for image in images)]),
        "true_boxes": np.concatenate([np.zeros((0, 4)), *(image.true_boxes for image in images)]),
        "true_classes": np.concatenate([np.zeros(0, np.int64), *(image.true_classes for image in images)]),
        "indices": np.array(list(names), dtype=np.int64),
        "names": np.array(list(names.values()), dtype=np.str_),
        "version": np.array(VERSION),
    }

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # given a path, NumPy would append .npz to its name
            np.savez_compressed(file, allow_pickle=False, **columns)

    atomic_replace(Path(path), write)


def load(path: str | Path) -> tuple[list[ImageResult], dict[int, str]]:
    """Read what `save` wrote; no pickle is loaded.

    Args:
        path: the file.

    Returns:
        the images in the order in which they were saved, and the class names by index.

    Raises:
        UserError: the file is missing, damaged, or of another version.
    """
    remedy = "Delete it and run the comparison again: it judges what is missing."
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
        if data["version"] != VERSION:
            raise UserError(f"{path} was written by another version of yolokd.", remedy)
        return _images(data), dict(zip(data["indices"].tolist(), data["names"].tolist(), strict=True))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.", remedy) from error
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} holds no detections that can be read: {error}", remedy) from error


def _images(data: Mapping[str, np.ndarray]) -> list[ImageResult]:
    found, true = (np.cumsum(data[key])[:-1] for key in ("found", "true"))
    parts = [np.split(data[key], found) for key in ("boxes", "scores", "classes")]
    parts += [np.split(data[key], true) for key in ("true_boxes", "true_classes")]
    rows = zip(data["files"].tolist(), data["sizes"].tolist(), *parts, strict=False)  # of no image: one empty part
    return [ImageResult(Path(name), height, width, *arrays) for name, (height, width), *arrays in rows]
