"""Export a detector to edge formats, and measure each file: is it the same detector, how large, how fast.

An export that runs is not yet an export that detects the same. Each file is loaded again, and its boxes on real images
are compared with the PyTorch model's, each after its own non-maximum suppression at the same confidence. A box whose
confidence lies at the threshold may appear in one and not in the other. A runtime may choose a
narrower number format than the file's: OpenVINO's boxes differed by up to 2 pixels on a processor with bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolokd.compat.dataset import check_data, image_files
from yolokd.compat.exporting import Runner, example_images, export_file, known_formats, nothing_installed
from yolokd.errors import UserError
from yolokd.evaluation.agreement import Agreement, compare_boxes
from yolokd.evaluation.coco import aligned, evaluate, file_bytes, safely_loaded

# What each format needs, to be written and to be run again: import name to the name that pip knows.
REQUIREMENTS: Mapping[str, Mapping[str, str]] = {
    "torchscript": {},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime"},
    "openvino": {"openvino": "openvino"},
    "ncnn": {"ncnn": "ncnn", "pnnx": "pnnx"},
    "engine": {"onnx": "onnx", "tensorrt": "tensorrt"},
    "coreml": {"coremltools": "coremltools"},
    "coreai": {"coreai_torch": "coreai-torch"},
    "saved_model": {"tensorflow": "tensorflow", "onnx2tf": "onnx2tf"},
    "pb": {"tensorflow": "tensorflow", "onnx2tf": "onnx2tf"},
    "edgetpu": {"tensorflow": "tensorflow", "onnx2tf": "onnx2tf"},
    "litert": {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"},
    "paddle": {"paddle": "paddlepaddle", "x2paddle": "x2paddle"},
    "mnn": {"onnx": "onnx", "MNN": "MNN"},
    "executorch": {"executorch": "executorch"},
}
# Those whose packages the extra `yolokd[export]` brings.
IN_EXTRA = frozenset({"onnx", "openvino", "ncnn"})
INT8 = frozenset({"8", "int8", "w8a8", "w8a16"})

MOST_IMAGES = 16
CONF = 0.25
# A weak model finds nothing at CONF; at this confidence there is always something to compare.
LOW_CONF = 0.001
WARM_UP, MOST_RUNS, FEWEST_RUNS, MOST_SECONDS = 3, 30, 5, 10.0


@dataclass(frozen=True)
class Exported:
    """One row of the table: a file and what was measured, or why there is none.

    Attributes:
        format: Ultralytics' name of the format; ``pytorch`` for the model itself.
        path: file or folder; None where nothing was written.
        size: bytes.
        milliseconds: median of one image: inference, decoding and suppression; None where it does not run.
        agreement: with the PyTorch model; None for the model itself.
        map: Ultralytics' mAP50-95, square images; None without ``data``.
        missing: the command that installs what the format needs, where it is missing.
        failure: why it could not be exported or run.
    """

    format: str
    path: Path | None = None
    size: int = 0
    milliseconds: float | None = None
    agreement: Agreement | None = None
    map: float | None = None
    missing: str = ""
    failure: str = ""


@dataclass(frozen=True)
class _Measure:
    """What every row is measured with."""

    images: list[Path]
    imgsz: int
    device: Any
    data: str | Path | None
    split: str
    trust: bool
    batch: int = 1
    conf: float = CONF

    def runner(self, path: Path) -> Runner:
        return Runner(path, imgsz=self.imgsz, device=self.device, batch=self.batch, trust=self.trust)

    def boxes(self, run: Runner, conf: float) -> list[NDArray[np.float64]]:
        return [run(image, conf)[0] for image in self.images]

    def map(self, path: Path) -> float | None:
        """mAP on square images one by one, as a fixed-shape file sees them; None without data."""
        if self.data is None:
            return None
        with nothing_installed():
            found = evaluate(
                path,
                self.data,
                split=self.split,
                imgsz=self.imgsz,
                batch=self.batch,
                device=self.device,
                trust=self.trust,
                rect=False,
            )
        return found.map


def export_model(
    model: str | Path,
    formats: Sequence[str],
    *,
    imgsz: int = 640,
    data: str | Path | None = None,
    split: str = "val",
    images: str | Path | None = None,
    device: Any = "cpu",
    trust: bool = False,
    **arguments: Any,
) -> list[Exported]:
    """Export a checkpoint to several formats with Ultralytics' exporter, run each file and compare it.

    The files are written beside the checkpoint, as Ultralytics does. Nothing is installed: a format whose package is
    missing is reported with the command. One format's failure does not stop the others.

    Args:
        model: a ``.pt`` checkpoint.
        formats: Ultralytics' names, e.g. ``onnx``, ``openvino``, ``torchscript``, ``ncnn``.
        imgsz: pixels of the square input.
        data: data YAML: its images are compared, mAP is measured on it, and int8 is calibrated with it.
        split: the split of ``data`` that is compared and measured.
        images: a folder (or one file) to compare on instead; without both, the two photographs of Ultralytics.
        device: where the files are made, run and timed.
        trust: load a ``.pt`` whose pickle could run code.
        arguments: Ultralytics' export arguments (``half``, ``int8``, ``dynamic``, ``opset``, ...).

    Returns:
        The PyTorch model first, then one entry a format.

    Raises:
        UserError: no such format, or model, data or images are missing or not what they should be.
    """
    wanted = check_formats(formats)
    path = safely_loaded(model, trust)
    if path.suffix != ".pt":
        raise UserError(f"model={model} is not a PyTorch checkpoint.", "Export from the .pt that training wrote.")
    batch = int(arguments.get("batch", 1))
    measure = _Measure(_images(data, split, images), imgsz, device or "cpu", data, split, trust, batch)
    run = measure.runner(path)
    reference = measure.boxes(run, CONF)
    if not any(len(boxes) for boxes in reference):
        measure = replace(measure, conf=LOW_CONF)
        reference = measure.boxes(run, LOW_CONF)
    rows = [
        Exported(
            "pytorch",
            path,
            file_bytes(path),
            milliseconds(run, measure.images[0], measure.conf),
            None,
            measure.map(path),
        )
    ]
    return rows + [_export(path, form, measure, reference, arguments) for form in wanted]


def check_formats(formats: Sequence[str]) -> list[str]:
    """Return the formats in lower case, each once.

    Raises:
        UserError: none is given, or Ultralytics does not know one.
    """
    known = known_formats()
    wanted = list(dict.fromkeys(str(form).strip().lower() for form in formats if str(form).strip()))
    unknown = [form for form in wanted if form not in known]
    if unknown or not wanted:
        problem = f"format={unknown[0]} is unknown." if unknown else "format= names no format."
        raise UserError(problem, f"Known formats: {', '.join(known)}.")
    return wanted


def missing_packages(form: str, *, int8: bool = False) -> str:
    """Return the command that installs what a format needs; empty where it is all there (or not known beforehand).

    Args:
        form: Ultralytics' name of the format.
        int8: whether it is calibrated, for which OpenVINO needs nncf.
    """
    needs = dict(REQUIREMENTS.get(form, {}))
    if int8 and form == "openvino":
        needs["nncf"] = "nncf"
    absent = [pip for name, pip in needs.items() if find_spec(name) is None]
    if not absent:
        return ""
    return (
        'pip install "yolokd[export]"'
        if form in IN_EXTRA and "nncf" not in absent
        else f"pip install {' '.join(absent)}"
    )


def _images(data: str | Path | None, split: str, images: str | Path | None) -> list[Path]:
    """Return the images to compare on, spread over what there is."""
    if images is None and data is None:
        return example_images()
    if images is None:
        found = [Path(file) for file in image_files(check_data(data, split), split)]
    else:
        root = Path(images)
        found = [root] if root.is_file() else [Path(f) for f in image_files({"val": str(root)}, "val")]
    if not found:
        raise UserError(f"images={images} holds no image.", "Name a folder of images.")
    return found[:: max(1, len(found) // MOST_IMAGES)][:MOST_IMAGES]


def _export(
    path: Path, form: str, measure: _Measure, reference: list[NDArray[np.float64]], arguments: Mapping[str, Any]
) -> Exported:
    """Export to one format and measure the file; whatever goes wrong is told in the row."""
    int8 = bool(arguments.get("int8")) or str(arguments.get("quantize")) in INT8
    missing = missing_packages(form, int8=int8)
    if missing:
        return Exported(form, missing=missing)
    extra = {"data": str(measure.data)} if int8 and measure.data and "data" in known_formats()[form] else {}
    file: Path | None = None
    try:
        file = export_file(
            path, form, trust=measure.trust, imgsz=measure.imgsz, device=measure.device, **extra, **arguments
        )
        run = measure.runner(file)
        agreement = compare_boxes(reference, measure.boxes(run, measure.conf))
        speed = milliseconds(run, measure.images[0], measure.conf)
        return Exported(form, file, file_bytes(file), speed, agreement, measure.map(file))
    except ModuleNotFoundError as error:
        return Exported(form, file, missing=f"pip install {(error.name or form).split('.')[0]}")
    except Exception as error:  # exporters and runtimes raise anything; the other formats go on
        return Exported(form, file, file_bytes(file) if file and file.exists() else 0, failure=_reason(error))


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def milliseconds(run: Runner, image: Path, conf: float) -> float:
    """Time one image: the median of up to 30 runs (at most 10 seconds, at least 5 runs) after 3 to warm up.

    Args:
        run: the detector.
        image: file; reading it is not timed.
        conf: lowest confidence.
    """
    for _ in range(WARM_UP):
        run(image, conf)
    times: list[float] = []
    end = time.perf_counter() + MOST_SECONDS
    while len(times) < FEWEST_RUNS or (len(times) < MOST_RUNS and time.perf_counter() < end):
        times.append(run(image, conf)[1])
    return median(times)


def export_table(rows: Sequence[Exported]) -> str:
    """Lay out the exports as text, the reasons of those that are missing below.

    Args:
        rows: what `export_model` returned.
    """
    with_map = any(row.map is not None for row in rows)
    header = ["format", "MB", "ms/image", "matched", "max box px", "max score", *(["mAP50-95"] if with_map else [])]
    cells = [[*header, "file"]]
    for row in rows:
        numbers = [
            f"{row.size / 1e6:.1f}" if row.size else "-",
            _form(row.milliseconds, ".1f"),
            _form(row.agreement.matched if row.agreement else None, ".1%"),
            _form(row.agreement.box if row.agreement else None, ".3f"),
            _form(row.agreement.score if row.agreement else None, ".4f"),
            *([_form(row.map, ".3f")] if with_map else []),
        ]
        cells.append([row.format, *numbers, row.path.name if row.path else "-"])
    notes = [f"{row.format}: a package is missing: {row.missing}" for row in rows if row.missing]
    notes += [f"{row.format}: failed: {row.failure}" for row in rows if row.failure]
    return "\n".join([aligned(cells), *notes])


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
