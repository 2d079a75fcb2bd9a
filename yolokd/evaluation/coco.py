"""mAP by Ultralytics and by pycocotools, of the same detections, side by side.

The two agree on the definition (101 recall points, IoU .50 to .95) and still print different numbers:

- Ultralytics interpolates precision linearly between measured recalls, pycocotools takes the next measured one; and
  Ultralytics integrates over the points where pycocotools averages them, so that a perfect detector scores .995.
- pycocotools counts the best 100 detections of a class in an image, Ultralytics all that the model keeps
  (``max_det``, 300 an image over all classes).
- With ``annotations=`` pycocotools also knows what YOLO labels cannot say: crowds (detections in them are not
  wrong) and the area of an object's outline, which decides whether it is small, medium or large.

Both depend on ``batch``: the images of a batch are letterboxed to one shape (unless ``rect=False``). On few images this
moves mAP by some hundredths, so compare models at the same batch.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolokd.compat.checkpoint import find_checkpoint, load_detector
from yolokd.compat.validation import validate
from yolokd.evaluation.annotations import CocoData, from_json, from_labels
from yolokd.evaluation.backends import coco_tool, evaluator

# More classes than this are not listed one by one.
MOST_CLASSES = 20


@dataclass(frozen=True)
class CocoScores:
    """pycocotools' answer; None where there is no object to find.

    Attributes:
        ap: AP at IoU .50 to .95, the mean over classes.
        ap50: the same at IoU .50.
        ap75: the same at IoU .75.
        small: AP of objects below 32 x 32 pixels of the original image.
        medium: AP of objects up to 96 x 96 pixels.
        large: AP of objects above.
        per_class: AP of each class by name.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on a data set, by two tools, and what it costs.

    Attributes:
        name: file name of the model.
        images: images evaluated, those without labels included.
        boxes: objects to find (without crowds).
        map: Ultralytics' mAP50-95.
        map50: Ultralytics' mAP50.
        coco: pycocotools' AP of the same detections.
        parameters: of the network as it is deployed (fused); None for an exported file.
        gflops: of one image at the evaluated size; None for an exported file.
        size: bytes on disk.
        unknown: classes of the data that the model does not know; their AP is 0.
    """

    name: str
    images: int
    boxes: int
    map: float
    map50: float
    coco: CocoScores
    parameters: int | None
    gflops: float | None
    size: int
    unknown: tuple[str, ...] = ()

    def kept(self, teacher: Evaluation) -> float | None:
        """Share of the teacher's AP (pycocotools, .50 to .95) that this model has; None where the teacher has none."""
        return retention(self.coco.ap, teacher.coco.ap)


def retention(student: float | None, teacher: float | None) -> float | None:
    """Share of the teacher's score that the student keeps; None where either has none.

    >>> retention(0.3, 0.4)
    0.75
    """
    return student / teacher if student is not None and teacher else None


def coco_scores(data: CocoData, *, backend: str = "pycocotools") -> CocoScores:
    """Score detections with COCOeval, boxes, at most 100 detections a class and image.

    Args:
        data: ground truth and detections.
        backend: ``pycocotools`` or ``faster-coco-eval``: the same numbers.

    Raises:
        UserError: the backend is not known or not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        judge = evaluator(data, backend)
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]  # (10 IoUs, 101 recalls, K classes, 4 areas, 3 maxDets), -1: nothing there
    areas = judge.params.areaRngLbl  # all, small, medium, large
    names = data.names

    def mean(values: Any) -> float | None:
        there = values[values > -1]
        return float(there.mean()) if there.size else None

    by_area = {area: mean(precision[:, :, :, i, -1]) for i, area in enumerate(areas)}
    return CocoScores(
        ap=by_area["all"],
        ap50=mean(precision[0, :, :, 0, -1]),
        ap75=mean(precision[5, :, :, 0, -1]),
        small=by_area["small"],
        medium=by_area["medium"],
        large=by_area["large"],
        per_class={names[c]: mean(precision[:, :, k, 0, -1]) for k, c in enumerate(judge.params.catIds)},
    )


def file_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder (OpenVINO and NCNN models are folders)."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    annotations: str | Path | None = None,
    imgsz: int = 640,
    batch: int = 16,
    device: Any = "",
    match_names: bool = True,
    class_map: Mapping[str, str] | None = None,
    trust: bool = False,
    backend: str = "pycocotools",
    **arguments: Any,
) -> Evaluation:
    """Evaluate a model with Ultralytics and with pycocotools in one pass over the images.

    Both judge the same detections. (Ultralytics' ``save_json`` would round boxes to 3 decimals and scores to 5;
    these are taken before that.)

    Args:
        model: a ``.pt`` checkpoint, or a file or folder that Ultralytics exported.
        data: data YAML.
        split: ``val``, ``test`` or ``train``.
        annotations: COCO's own JSON as pycocotools' ground truth; without it the labels are.
        imgsz: pixels of the longer image side.
        batch: images at once.
        device: as Ultralytics says it: ``cpu``, ``0``, empty for the best there is.
        match_names: compare the model's classes with the data's by name; False: by index, as Ultralytics does.
        class_map: the model's class name to the data's, where they differ.
        trust: load a ``.pt`` whose pickle could run code.
        backend: the second tool: ``pycocotools``, or ``faster-coco-eval`` (the same numbers).
        arguments: Ultralytics' validation arguments (``conf``, ``iou``, ``max_det``, ``half``, ...).

    Raises:
        UserError: model, data or annotations are missing or not what they should be.
    """
    coco_tool(backend)  # before the images are looked at
    path = safely_loaded(model, trust)
    passed = validate(
        path,
        data,
        split=split,
        match_names=match_names,
        class_map=class_map,
        trust=trust,
        imgsz=imgsz,
        batch=batch,
        device=device,
        **arguments,
    )
    if annotations is None:
        both = from_labels(passed.images, passed.names)
    else:
        both = from_json(annotations, passed.images, passed.names)
    return Evaluation(
        name=path.name,
        images=len(passed.images),
        boxes=sum(not a["iscrowd"] for a in both.truth["annotations"]),
        map=passed.map,
        map50=passed.map50,
        coco=coco_scores(both, backend=backend),
        parameters=passed.parameters,
        gflops=passed.gflops,
        size=file_bytes(path),
        unknown=passed.unknown,
    )


def evaluation_table(student: Evaluation, teacher: Evaluation | None = None) -> str:
    """Lay out one evaluation, or a student's beside its teacher's with the share kept.

    Args:
        student: the model in question.
        teacher: what it learnt from.

    Returns:
        Lines of plain text. ``-`` stands where there is no object of that kind to find.
    """
    columns = [student] if teacher is None else [student, teacher]
    header = ["", *(e.name for e in columns)] + ([] if teacher is None else ["kept"])
    rows = [header]
    for label, values in _scores(columns):
        rows.append([label, *(_number(v, ".3f") for v in values), *_share(values)])
    rows.append(
        ["parameters", *(_number(e.parameters, ",d") for e in columns), *_share([e.parameters for e in columns])]
    )
    rows.append(["GFLOPs", *(_number(e.gflops, ".1f") for e in columns), *_share([e.gflops for e in columns])])
    rows.append(["file, MB", *(f"{e.size / 1e6:.1f}" for e in columns), *_share([e.size for e in columns])])
    lines = [f"{student.images} images, {student.boxes} objects", aligned(rows)]
    for e in columns:
        if e.unknown:
            lines.append(f"{e.name} does not know {', '.join(e.unknown)}: AP 0 there.")
    return "\n".join(lines)


def _scores(columns: list[Evaluation]) -> list[tuple[str, list[float | None]]]:
    """Return the rows of scores: both tools', sizes, and the classes where they are few."""
    rows: list[tuple[str, list[float | None]]] = [
        ("Ultralytics mAP50-95", [e.map for e in columns]),
        ("Ultralytics mAP50", [e.map50 for e in columns]),
        ("pycocotools AP", [e.coco.ap for e in columns]),
        ("pycocotools AP50", [e.coco.ap50 for e in columns]),
        ("pycocotools AP75", [e.coco.ap75 for e in columns]),
        ("pycocotools AP small", [e.coco.small for e in columns]),
        ("pycocotools AP medium", [e.coco.medium for e in columns]),
        ("pycocotools AP large", [e.coco.large for e in columns]),
    ]
    classes = [name for name, ap in columns[0].coco.per_class.items() if ap is not None]
    if len(classes) <= MOST_CLASSES:
        rows += [(f"AP of {name}", [e.coco.per_class.get(name) for e in columns]) for name in classes]
    return rows


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(values: list[Any]) -> list[str]:
    if len(values) == 1:
        return []
    share = retention(*values)
    return ["-" if share is None else f"{share:.1%}"]


def aligned(rows: list[list[str]]) -> str:
    """Lay out rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def safely_loaded(model: str | Path, trust: bool = False) -> Path:
    """Return where a model lies, after a ``.pt`` has been loaded without running its pickle.

    Args:
        model: a ``.pt`` checkpoint, or a file or folder that Ultralytics exported.
        trust: load a ``.pt`` whose pickle could run code.

    Raises:
        UserError: missing, damaged, not safe, or not a detector.
    """
    path = Path(model)
    if path.suffix == ".pt" or not path.exists():
        load_detector(path, role="model", trust=trust)
        return find_checkpoint(path, role="model")
    return path
