"""Label files of Ultralytics' data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ultralytics.data.utils import img2label_paths


def label_texts(images: Sequence[str]) -> list[str]:
    """What stands in the label file of each image; empty where there is no such file.

    Args:
        images: image files; the labels are looked for where Ultralytics does.
    """
    files = (Path(label) for label in img2label_paths(list(images)))
    return [file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "" for file in files]


def labelled(images: Sequence[str]) -> list[str]:
    """The images that have a label file, be it an empty one."""
    return [image for image, label in zip(images, img2label_paths(list(images)), strict=True) if Path(label).is_file()]


def classes_in(text: str) -> set[int]:
    """The class indices in a label file; lines that begin with no number are passed over.

    >>> sorted(classes_in("2 .5 .5 .1 .1\\n0 .2 .2 .1 .1"))
    [0, 2]
    """
    found = set()
    for line in text.splitlines():
        first = line.partition(" ")[0]
        try:
            found.add(int(float(first)))
        except ValueError:
            continue  # Ultralytics drops the image of such a file
    return found
