"""The main job on generated images: a teacher, a plain nano, a distilled nano, one table. Offline, in minutes.

The teacher (``assets/demo_teacher.pt``) was trained by ``examples/train_demo_teacher.py`` on images of another seed;
the two nanos start from the same random weights and see the same images equally often.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.utils import LOGGER
from ultralytics.utils.files import increment_path

from yolokd.compat.offline import no_font_download
from yolokd.data.shapes import IMAGE_SIZE, IMAGES, NAMES, draw, generate, write_yaml
from yolokd.data.shapes import SEED as SHAPES_SEED
from yolokd.errors import UserError
from yolokd.evaluation.coco import Evaluation, aligned, evaluate
from yolokd.export import Exported, export_model
from yolokd.trainer import DistillationTrainer

TEACHER = Path(__file__).parent / "assets" / "demo_teacher.pt"
STUDENT = "yolo11n.yaml"  # random weights: pretrained ones would have to be downloaded
EPOCHS = 40
SEED = 0
PICTURES = 6  # test images in the side-by-side picture
_ZOOM = 3  # how much larger than the image they are drawn
# Ultralytics accumulates gradients up to a nominal batch of 64: on 200 images that would leave 3 steps an epoch.
# amp=False keeps it from fetching yolo26n.pt for its AMP check on CUDA.
TRAINING: dict[str, Any] = {
    "imgsz": IMAGE_SIZE,
    "batch": 8,
    "nbs": 8,
    "cache": True,
    "workers": 1,
    "plots": False,
    "amp": False,
    "exist_ok": True,
}


@dataclass(frozen=True)
class Row:
    """One line of the demo's table.

    Attributes:
        name: ``teacher``, ``plain`` or ``distilled``.
        checkpoint: its ``.pt``.
        scores: what it scores on the test images.
        seconds: what its training took here; None for the teacher that was shipped.
    """

    name: str
    checkpoint: Path
    scores: Evaluation
    seconds: float | None


@dataclass(frozen=True)
class Demo:
    """What a demo leaves behind.

    Attributes:
        folder: the run: ``plain/``, ``distilled/``, the pictures.
        rows: teacher, plain, distilled.
        exported: the distilled nano in an edge format, with what the file scores.
        note: why that is not ONNX; empty where it is.
        pictures: side by side: ground truth, plain, distilled, teacher.
        seconds: the whole demo.
    """

    folder: Path
    rows: tuple[Row, Row, Row]
    exported: Exported
    note: str
    pictures: Path
    seconds: float

    def __str__(self) -> str:
        """The table, what it says about distillation, and where everything lies."""
        teacher, plain, distilled = self.rows
        note = [self.note] if self.note else []
        lines = [
            f"\n{teacher.scores.images} test images, {teacher.scores.boxes} shapes that no model has trained on",
            table(self.rows),
            verdict(plain, distilled, teacher),
            f"Pictures (ground truth, plain, distilled, teacher): {self.pictures}",
            f"Distilled nano: {distilled.checkpoint}",
            f"Exported: {exported_line(self.exported)}",
            *note,
            f"The demo took {self.seconds / 60:.1f} minutes.",
        ]
        return "\n".join(lines)


def run_demo(
    project: str | Path | None = None,
    epochs: int = EPOCHS,
    images: tuple[int, int, int] = IMAGES,
    seed: int = SEED,
    device: Any = "",
) -> Demo:
    """Distil a nano on generated images, compare it to one trained plainly, export it.

    Args:
        project: folder of the demo; its images stay there, each run gets a new subfolder. ``runs/demo`` by default.
        epochs: of both nanos, at least 2: distillation ramps up during the first.
        images: train, val and test images.
        seed: of both trainings; the images stay the same.
        device: as Ultralytics says it: ``cpu``, ``0``, empty for the best there is.

    Returns:
        What it measured and where it lies; ``print`` shows the table.

    Raises:
        UserError: the shipped teacher is missing, or ``project`` holds other files where the images should go.
    """
    begin = time.perf_counter()
    if not TEACHER.is_file():
        raise UserError(f"{TEACHER} is missing.", "Install yolokd again, or run examples/train_demo_teacher.py.")
    home = Path(project or Path("runs") / "demo").resolve()
    name = "shapes" if images == IMAGES else "shapes-" + "-".join(map(str, images))
    data = write_yaml(home / f"{name}.yaml", generate(home / name, images=images))
    folder = Path(increment_path(home / "run", mkdir=True))
    settings = TRAINING | {"data": str(data), "epochs": epochs, "seed": seed, "device": device, "project": str(folder)}
    with no_font_download():
        rows = _measure(settings)
        exported, note = _export(rows[2].checkpoint, data)
        pictures = side_by_side([rows[1], rows[2], rows[0]], min(PICTURES, images[2]), folder / "side_by_side.png")
    return Demo(folder, rows, exported, note, pictures, time.perf_counter() - begin)


def _measure(settings: dict[str, Any]) -> tuple[Row, Row, Row]:
    """Train both nanos; score the teacher and them on the test images."""

    def row(name: str, checkpoint: Path, seconds: float | None) -> Row:
        scores = evaluate(checkpoint, settings["data"], split="test", imgsz=IMAGE_SIZE, device=settings["device"])
        return Row(name, checkpoint, scores, seconds)

    under_teacher = {"trainer": DistillationTrainer, "teacher": str(TEACHER)}
    plain = _train("plain", settings)
    distilled = _train("distilled", settings | under_teacher)
    return row("teacher", TEACHER, None), row("plain", *plain), row("distilled", *distilled)


def table(rows: tuple[Row, ...]) -> str:
    """Lay out the rows: accuracy by Ultralytics, AP by pycocotools, parameters, file size, training time."""
    cells = [["", "mAP50-95", "mAP50", "AP (COCO)", "parameters", "file, MB", "training, s"]]
    for row in rows:
        s = row.scores
        accuracy = [f"{s.map:.3f}", f"{s.map50:.3f}", "-" if s.coco.ap is None else f"{s.coco.ap:.3f}"]
        cost = ["-" if s.parameters is None else f"{s.parameters:,}", f"{s.size / 1e6:.1f}"]
        cells.append([row.name, *accuracy, *cost, "shipped" if row.seconds is None else f"{row.seconds:.0f}"])
    return aligned(cells)


def verdict(plain: Row, distilled: Row, teacher: Row) -> str:
    """Say in one line whether distillation won here, also where it did not."""
    gain = 100 * (distilled.scores.map - plain.scores.map)
    kept = f"; it keeps {distilled.scores.map / teacher.scores.map:.0%} of the teacher's" if teacher.scores.map else ""
    caveat = "One pair of runs: another seed= gives another difference."
    if abs(gain) < 0.05:
        return f"Distillation changed nothing here (mAP50-95 {distilled.scores.map:.3f}{kept}). {caveat}"
    word = "gained" if gain > 0 else "LOST"
    return f"Distillation {word} {abs(gain):.1f} points of mAP50-95 here{kept}. {caveat}"


def exported_line(exported: Exported) -> str:
    """Say where the exported file is and whether it is still the same detector."""
    if exported.path is None or exported.agreement is None or exported.map is None:
        return f"no file: {exported.failure or exported.missing}"
    matched = exported.agreement.matched
    same = "no box to compare" if matched is None else f"{matched:.1%} of the boxes match PyTorch's"
    cost = f"{exported.size / 1e6:.1f} MB, {exported.milliseconds:.1f} ms/image"
    return f"{exported.path} ({cost}, {same}, mAP50-95 {exported.map:.3f} on square input)"


def side_by_side(rows: list[Row], count: int, path: Path) -> Path:
    """Draw the first test images, one a line: ground truth, then what each model finds with confidence over .25.

    Args:
        rows: the models, from left to right.
        count: how many images.
        path: the picture to write.

    Returns:
        ``path``.
    """
    models = [YOLO(row.checkpoint) for row in rows]
    lines = [np.hstack([_header(name) for name in ("ground truth", *(row.name for row in rows))])]
    for index in range(count):
        picture, labels = draw(SHAPES_SEED, "test", index)
        half = labels[:, 3:5] / 2
        corners = np.hstack([labels[:, 1:3] - half, labels[:, 1:3] + half]) * IMAGE_SIZE
        panels = [_boxes(picture, labels[:, 0], corners)]
        for model in models:
            found = model.predict(picture, imgsz=IMAGE_SIZE, conf=0.25, verbose=False)[0].boxes
            panels.append(_boxes(picture, found.cls.cpu().numpy(), found.xyxy.cpu().numpy()))
        lines.append(np.hstack(panels))
    path.write_bytes(cv2.imencode(".png", np.vstack(lines))[1].tobytes())
    return path


def _header(text: str) -> NDArray[np.uint8]:
    strip = np.full((28, IMAGE_SIZE * _ZOOM, 3), 255, np.uint8)
    cv2.putText(strip, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _boxes(picture: NDArray[np.uint8], labels: NDArray[Any], corners: NDArray[Any]) -> NDArray[np.uint8]:
    """Enlarge the picture and draw named boxes, ``corners`` (N, 4) being (x1, y1, x2, y2) in its pixels."""
    large = cv2.resize(picture, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_NEAREST)
    for label, box in zip(labels.astype(int), np.rint(corners * _ZOOM).astype(int), strict=True):
        hue = np.array([[[label * 180 // len(NAMES), 110, 255]]], np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()  # light, so that dark letters read on it
        cv2.rectangle(large, box[:2].tolist(), box[2:].tolist(), colour, 2)
        x, y = int(box[0]), max(int(box[1]), 12)
        width = cv2.getTextSize(NAMES[label], cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0]
        cv2.rectangle(large, (x, y - 12), (x + width, y), colour, -1)
        cv2.putText(large, NAMES[label], (x, y - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.asarray(large, dtype=np.uint8)


def _train(name: str, settings: dict[str, Any]) -> tuple[Path, float]:
    """Train a nano from random weights; return its best checkpoint and the seconds that took."""
    LOGGER.info(f"\nyolokd demo: the {name} nano, {settings['epochs']} epochs")
    begin = time.perf_counter()
    YOLO(STUDENT).train(name=name, **settings)
    return Path(settings["project"]) / name / "weights" / "best.pt", time.perf_counter() - begin


def _export(checkpoint: Path, data: Path) -> tuple[Exported, str]:
    """Export to ONNX; to TorchScript, which needs no other package, where ONNX is not to be had."""

    def export(form: str) -> Exported:
        return export_model(checkpoint, [form], imgsz=IMAGE_SIZE, data=data, split="test")[-1]

    onnx = export("onnx")
    if onnx.path and not onnx.failure:
        return onnx, ""
    reason = f"ONNX needs a package: {onnx.missing}" if onnx.missing else f"ONNX failed: {onnx.failure}"
    return export("torchscript"), f"{reason}. Exported to TorchScript instead."
