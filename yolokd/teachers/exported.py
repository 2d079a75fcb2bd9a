"""A teacher without weights to look into: an exported model, run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from yolokd.classes import shorten
from yolokd.compat.refusals import first_line
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo, Predictions
from yolokd.teachers.live import LARGER
from yolokd.teachers.outputs import BOX_FORMATS, find_reading

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "f32": "float32", "f16": "float16"}


class ExportedTeacher:
    """A detector of which only the file is there.

    The images go in as the student sees them, RGB in [0, 1], channels first; what else a model wants of them
    (a mean, another range) must be part of it. Nothing in the file is run but its graph: metadata is read as literals,
    custom operators are not loaded.

    An Ultralytics export on a grid gives dense predictions, its boxes as plain distances (reg_max 1: the
    distributions are lost); anything else gives ``detections``, which `layout.lay_out` brings onto the student's grid.
    It has no features. See `outputs.find_reading` for what can be read.

    Args:
        path: ``.onnx``, ``.xml``, or the folder that Ultralytics exports for OpenVINO.
        size: height and width of the training images in pixels.
        device: where ONNX Runtime is to compute, if it can; OpenVINO computes on the CPU.
        precision: of OpenVINO: ``auto`` (bfloat16 on a CPU that multiplies in it), ``fp32``, ``bf16``, ``fp16``; an
            ONNX file has its own and takes ``auto`` and ``fp32`` only.
        names: the class names in order, for a file that does not say them.
        box_format: one of ``outputs.BOX_FORMATS``, for files that do not come from Ultralytics; None finds it out.
        max_det: detections of an image, the surest.

    Raises:
        UserError: the file or the package to run it is missing, it takes other images, it names no classes, or others
            than ``names``, or its outputs cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        device: torch.device | None = None,
        precision: str = "auto",
        names: Sequence[str] | None = None,
        box_format: str | None = None,
        max_det: int = 100,
    ) -> None:
        self.name = str(path)
        said = f"teacher={path}"
        if box_format not in (None, *BOX_FORMATS):
            raise UserError(f"teacher_boxes={box_format} is no format of boxes.", f"Take {', '.join(BOX_FORMATS)}.")
        self._engine = _open(Path(str(path).strip()), said, device or torch.device("cpu"), precision)
        _refuse_input(self._engine, size, said)
        metadata = self._engine.metadata
        found = _names(metadata, names, said)
        try:
            outputs = self._run(torch.zeros(1, 3, *size))
        except Exception as error:
            raise UserError(
                f"{said} does not run on images of {size[1]} x {size[0]} px: {first_line(error)}.",
                "Export it again, with imgsz= of the training or dynamic=True.",
            ) from error
        self._read = find_reading(outputs, size, len(found), metadata, said, box_format, max_det)
        self.info = HeadInfo(found, self._read.strides, (), reg_max=1, end2end=False)

    @property
    def box_format(self) -> str | None:
        """How it writes down its boxes, as far as that is known by now; None of a grid."""
        return self._read.box_format

    @property
    def fixed(self) -> bool:
        """It takes images of one size only."""
        return None not in self._engine.shape[-2:]

    @property
    def on_cpu(self) -> bool:
        """It computes on the CPU, wherever it was to."""
        return self._engine.on_cpu

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """Run the teacher on ``batch["img"]``, ``(B, 3, H, W)`` in [0, 1], or on larger images where it has some."""
        return self.forward(batch.get(LARGER, batch["img"]))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Predictions:
        """Predictions for ``(B, 3, H, W)`` images in [0, 1], in float32, in the teacher's own class space.

        Raises:
            UserError: the images have another size than the file takes, or the outputs other values than they should.
        """
        height, width = images.shape[2:]
        _refuse_input(self._engine, (height, width), f"teacher={self.name}")
        return self._read(self._run(images), (height, width))

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for all images, as many at once as the file takes; what is missing to that is black."""
        engine, count = self._engine, len(images)
        step = engine.at_once or count
        arrays = images.detach().cpu().numpy().astype(engine.dtype)
        arrays = np.concatenate([arrays, np.zeros((-count % step, *arrays.shape[1:]), engine.dtype)])
        parts = []
        for start in range(0, len(arrays), step):
            part = engine.run(arrays[start : start + step] if engine.batched else arrays[start])
            parts.append(part if engine.by_image else [output[None] for output in part])
        return {
            key: _joined([torch.from_numpy(part[i]) for part in parts])[:count].to(images.device)
            for i, key in enumerate(engine.outputs)
        }


def _joined(parts: list[Tensor]) -> Tensor:
    """Batches of outputs as one; an image with fewer rows than another gets rows of zeros, a score of 0 among them."""
    rows = max(part.shape[1] for part in parts)
    return torch.cat([torch.cat([p, p.new_zeros(len(p), rows - p.shape[1], *p.shape[2:])], 1) for p in parts])


@dataclass(frozen=True)
class _Engine:
    """A model that can be run.

    Attributes:
        run: from one array to the arrays of the outputs.
        shape: of the input; None where a dimension is free.
        dtype: number format of the input.
        outputs: their names.
        by_image: the outputs have a dimension for the images.
        metadata: what the file says of itself.
        on_cpu: it computes on the CPU.
    """

    run: Callable[[NDArray[Any]], list[NDArray[Any]]]
    shape: tuple[int | None, ...]
    dtype: str
    outputs: tuple[str, ...]
    by_image: bool
    metadata: Mapping[str, Any]
    on_cpu: bool = True

    @property
    def batched(self) -> bool:
        """Whether the input has a dimension for the images."""
        return len(self.shape) == 4

    @property
    def at_once(self) -> int | None:
        """Images that must be given at once; None: any number.

        Ultralytics' non-maximum suppression is a loop over the images that it was exported for, whatever number the
        input takes.
        """
        if not (self.batched and self.by_image):
            return 1
        if dict(self.metadata.get("args") or {}).get("nms"):
            return int(self.metadata["batch"])
        return self.shape[0]


def _open(file: Path, said: str, device: torch.device, precision: str) -> _Engine:
    """Load a file with the package that runs it.

    Raises:
        UserError: file or package is missing, or the file is damaged.
    """
    onnx = file.suffix == ".onnx"
    if not onnx and file.is_dir():
        file = next(iter(sorted(file.glob("*.xml"))), file)
    if not file.is_file():
        raise UserError(f"{said}: no such file.", "Check the path; an OpenVINO export is a folder with an .xml file.")
    if onnx and precision not in ("auto", "fp32"):
        raise UserError(
            f"teacher_precision={precision}: an ONNX file computes as it was exported.",
            "Leave teacher_precision out, or export the teacher to OpenVINO.",
        )
    try:
        return _open_onnx(file, device) if onnx else _open_openvino(file, precision)
    except ImportError as error:
        package = "onnxruntime" if onnx else "openvino"
        raise UserError(f"{said} needs the package {package}.", f"pip install {package}") from error
    except Exception as error:
        raise UserError(
            f"{said} cannot be loaded: {first_line(error)}.", "Export it again; it may be truncated."
        ) from error


def _open_onnx(file: Path, device: torch.device) -> _Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if device.type == "cuda" else []
    able = [p for p in (*wanted, ("CPUExecutionProvider", {})) if p[0] in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(str(file), options, providers=able)
    (image,) = _one_input(session.get_inputs())
    return _Engine(
        lambda array: list(session.run(None, {image.name: array})),
        tuple(d if isinstance(d, int) else None for d in image.shape),
        _TYPES.get(image.type, image.type),
        tuple(output.name for output in session.get_outputs()),
        max(len(output.shape) for output in session.get_outputs()) > 2,  # boxes (N, 4) or (B, N, 4)
        {key: _literal(value) for key, value in session.get_modelmeta().custom_metadata_map.items()},
        session.get_providers()[0] == "CPUExecutionProvider",
    )


def _open_openvino(file: Path, precision: str) -> _Engine:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(file))
    (image,) = _one_input(model.inputs)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision != "auto":
        settings["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
    compiled = core.compile_model(model, "CPU", settings)
    notes = file.parent / "metadata.yaml"
    return _Engine(
        lambda array: list(compiled(array).values()),
        tuple(None if d.is_dynamic else d.get_length() for d in image.get_partial_shape()),
        _TYPES.get(image.get_element_type().get_type_name(), image.get_element_type().get_type_name()),
        tuple(next(iter(sorted(o.get_names())), f"output{i}") for i, o in enumerate(model.outputs)),
        max(len(o.get_partial_shape()) for o in model.outputs) > 2,
        yaml.safe_load(notes.read_text(encoding="utf-8")) if notes.is_file() else {},
    )


def _one_input(inputs: Sequence[Any]) -> Sequence[Any]:
    if len(inputs) != 1:
        raise ValueError(f"it takes {len(inputs)} inputs, not one batch of images")
    return inputs


def _literal(text: str) -> Any:
    """A metadata value: Ultralytics writes Python literals; what is none stays text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _names(metadata: Mapping[str, Any], given: Sequence[str] | None, said: str) -> dict[int, str]:
    """Class index to name, as the file has them, or as they were given.

    Raises:
        UserError: there are none, or the file has others: of several teachers it would be taken for another one.
    """
    names = metadata.get("names")
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    stated = isinstance(names, dict) and sorted(names) == list(range(len(names))) and names
    if given and stated and list(given) != [str(stated[i]) for i in range(len(stated))]:
        raise UserError(
            f"{said} says itself what its classes are called ({shorten(list(map(str, stated.values())))}).",
            "Leave out teacher_names=; class_map=TEACHER:STUDENT maps names that differ.",
        )
    if given:
        return dict(enumerate(given))
    if not stated:
        raise UserError(
            f"{said} does not say what its classes are called, and classes are matched by name.",
            "Name them in order, from 0: teacher_names=person,bicycle,...",
        )
    return {int(i): str(name) for i, name in stated.items()}


def _refuse_input(engine: _Engine, size: tuple[int, int], said: str) -> None:
    """Refuse a model that does not take the images of the training.

    Raises:
        UserError: other channels, another number format, another size.
    """
    shape = engine.shape
    if len(shape) not in (3, 4) or shape[-3] not in (3, None) or engine.dtype not in ("float32", "float16"):
        listed = " x ".join("any" if d is None else str(d) for d in shape)
        raise UserError(
            f"{said} takes an input of {listed} in {engine.dtype}, not RGB images in [0, 1], channels first.",
            "Export it with such an input.",
        )
    if any(has not in (wants, None) for has, wants in zip(shape[-2:], size, strict=True)):
        raise UserError(
            f"{said} takes images of {shape[-1]} x {shape[-2]} px, the training has {size[1]} x {size[0]}.",
            f"Export it with imgsz={max(size)} or dynamic=True, or train with its size.",
        )
