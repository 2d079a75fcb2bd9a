"""Ultralytics' exporter and its way of running what it exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.engine.exporter import export_formats
from ultralytics.utils import ASSETS

from yolokd.compat.checkpoint import restricted_loading


def known_formats() -> dict[str, frozenset[str]]:
    """The formats that Ultralytics exports to, with the arguments that each understands."""
    table = export_formats()
    rows = zip(table["Argument"], table["Arguments"], strict=True)
    return {name: frozenset(arguments) for name, arguments in rows if name != "-"}


def example_images() -> list[Path]:
    """The two photographs that come with Ultralytics."""
    return [ASSETS / "bus.jpg", ASSETS / "zidane.jpg"]


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Keep Ultralytics from installing the packages that it misses, which it does unless YOLO_AUTOINSTALL=false."""
    with mock.patch("ultralytics.utils.checks.AUTOINSTALL", False):
        yield


def export_file(model: Path, form: str, *, trust: bool = False, **arguments: Any) -> Path:
    """Export a checkpoint with Ultralytics' exporter; the file is written beside it.

    Args:
        model: a checkpoint that has been loaded safely before.
        form: one of `known_formats`.
        trust: load a ``.pt`` whose pickle could run code.
        arguments: Ultralytics' export arguments.

    Returns:
        The exported file or folder.
    """
    with restricted_loading(trust):
        network = YOLO(str(model), task="detect")
    with nothing_installed():
        return Path(network.export(format=form, **arguments))


class Runner:
    """A detector of any format, run on one image at a time as Ultralytics' ``predict`` does.

    Images are letterboxed to the full square (``rect=False``): exported files have a fixed shape, and the PyTorch
    model must see the same pixels.

    Args:
        model: checkpoint or exported file.
        imgsz: pixels, or (height, width).
        device: as Ultralytics says it.
        batch: how often the image is run at once: a file exported for several images takes no fewer.
        trust: load a ``.pt`` whose pickle could run code.
    """

    def __init__(
        self, model: Path, *, imgsz: int | Sequence[int], device: Any, batch: int = 1, trust: bool = False
    ) -> None:
        self.imgsz = imgsz
        self.batch = batch
        self.device = device
        with restricted_loading(trust):
            self.network = YOLO(str(model), task="detect")

    def __call__(self, image: Path, conf: float) -> tuple[NDArray[np.float64], float]:
        """Detect.

        Args:
            image: file.
            conf: lowest confidence.

        Returns:
            ``(N, 6)`` boxes (x1, y1, x2, y2) in pixels of the image, confidence, class; and the milliseconds an image
            of inference and what follows it (decoding, non-maximum suppression), without reading and letterboxing.
        """
        with nothing_installed():
            found = self.network.predict(
                [str(image)] * self.batch,
                imgsz=self.imgsz,
                conf=conf,
                device=self.device,
                batch=self.batch,
                rect=False,
                save=False,
                verbose=False,
            )[0]
        boxes = found.boxes.data.double().cpu().numpy().reshape(-1, 6)
        return boxes, float(found.speed["inference"] + found.speed["postprocess"])
