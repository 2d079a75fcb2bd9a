"""Ultralytics' validator, with the detections and the labels that it scored handed out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.metrics import box_iou
from ultralytics.utils.torch_utils import get_flops, get_num_params

from yolokd.classes import ClassMap, normalise, shorten
from yolokd.compat.checkpoint import restricted_loading
from yolokd.compat.dataset import check_data
from yolokd.compat.offline import no_font_download
from yolokd.compat.refusals import first_line
from yolokd.compat.views import Views, attach_views
from yolokd.errors import UserError

Array = NDArray[np.float64]
# Arguments that ask for files, or say where they go.
WRITES = ("plots", "save_json", "save_txt", "visualize", "project", "name", "save_dir")


@dataclass(frozen=True)
class ImageResult:
    """What was found and what there was to find in one image.

    Boxes are (x1, y1, x2, y2) in pixels of the original image, neither rounded nor filtered.

    Attributes:
        file: the image file.
        height: pixels of the original image.
        width: pixels of the original image.
        boxes: ``(N, 4)`` detections.
        scores: ``(N,)`` confidences.
        classes: ``(N,)`` class indices of the data set.
        true_boxes: ``(M, 4)`` labels as Ultralytics read them: duplicates and corrupt files dropped, polygons boxed.
        true_classes: ``(M,)`` class indices of the data set.
    """

    file: Path
    height: int
    width: int
    boxes: Array
    scores: Array
    classes: NDArray[np.int64]
    true_boxes: Array
    true_classes: NDArray[np.int64]


@dataclass
class Validation:
    """One pass of Ultralytics' validator.

    Attributes:
        names: class names of the data set by index.
        images: what happened in each image, in the validator's order.
        map: Ultralytics' mAP50-95.
        map50: Ultralytics' mAP50.
        parameters: of the network as it is deployed (fused); None for an exported file.
        gflops: of one image at the validated size; None for an exported file or where they cannot be counted.
        unknown: class names of the data set that the model does not know (their AP is 0).
    """

    names: Mapping[int, str]
    images: list[ImageResult] = field(default_factory=list)
    map: float = 0.0
    map50: float = 0.0
    parameters: int | None = None
    gflops: float | None = None
    unknown: tuple[str, ...] = ()


class CollectingValidator(DetectionValidator):  # type: ignore[misc]  # Ultralytics is untyped
    """Ultralytics' detection validator that keeps what it scores, and matches classes by name.

    Where the model's class list differs from the data set's, Ultralytics compares indices: a COCO teacher's class 0
    would be judged as the data set's class 0. Here its detections are renamed first, and those of classes that the
    data set does not have are dropped.

    Args:
        sink: receives the images.
        match_names: False compares indices, as Ultralytics does.
        class_map: the model's class name to the data set's, where they differ.
        student_view: ``gray``, ``dark`` or ``half``: what the model sees of the images; or empty.
        args: Ultralytics' validation arguments.
        _callbacks: as Ultralytics passes them.
    """

    def __init__(
        self,
        *,
        sink: Validation,
        match_names: bool = True,
        class_map: Mapping[str, str] | None = None,
        student_view: str = "",
        args: Any = None,
        _callbacks: Any = None,
    ) -> None:
        super().__init__(args=args, _callbacks=_callbacks)
        self.sink = sink
        self.match_names = match_names
        self.class_map = class_map
        self.student_view = student_view
        self.save_json_asked = bool(self.args.save_json)
        self.lookup: torch.Tensor | None = None
        self.names: dict[int, str]  # set by Ultralytics: the model's, before the loader is built

    def get_dataloader(self, dataset_path: Any, batch_size: int) -> Any:
        """Build the loader after the model's classes have been matched to the data set's.

        Raises:
            UserError: the two share no class, or the split holds no readable image.
        """
        if self.match_names and not self.args.single_cls:
            self.lookup, self.sink.unknown = _class_lookup(self.names, self.sink.names, self.class_map)
            self.names = dict(self.sink.names)  # else Ultralytics drops labels above the model's class count
        try:
            loader = super().get_dataloader(dataset_path, batch_size)
        except (FileNotFoundError, AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"No usable images for split={self.args.split}: {first_line(error)}",
                "Point the data YAML's split at a folder of images (with a labels folder beside it).",
            ) from error
        if not len(loader.dataset):
            raise UserError(
                f"split={self.args.split} is empty: {dataset_path}.", "Choose another split=, or put images there."
            )
        return loader

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Ultralytics' own, seen as the student sees it."""
        dataset = super().build_dataset(*args, **kwargs)
        if self.student_view:
            attach_views(dataset, Views(student_view=self.student_view))
        return dataset

    def init_metrics(self, model: Any) -> None:
        """Keep score in the data set's classes, without the faster-coco-eval that Ultralytics starts on COCO."""
        if self.lookup is not None:
            model.names = dict(self.sink.names)
        super().init_metrics(model)
        self.args.save_json = self.save_json_asked

    def postprocess(self, preds: Any) -> Any:
        """Suppress as Ultralytics does, then rename the classes."""
        found = super().postprocess(preds)
        if self.lookup is None:
            return found
        renamed = []
        for pred in found:
            index = self.lookup.to(pred["cls"].device)[pred["cls"].long()]
            kept = {key: value[index >= 0] for key, value in pred.items()}
            renamed.append({**kept, "cls": index[index >= 0].to(pred["cls"].dtype)})
        return renamed

    def update_metrics(self, preds: Any, batch: Any) -> None:
        """Let Ultralytics score the batch, and keep the same detections in pixels of the original images."""
        super().update_metrics(preds, batch)
        for i, pred in enumerate(preds):
            prepared = self._prepare_batch(i, batch)
            scaled = self.scale_preds(pred, prepared)
            height, width = (int(x) for x in prepared["ori_shape"])
            true_boxes, true_classes = self._labels(prepared["im_file"], height, width)
            self.sink.images.append(
                ImageResult(
                    file=Path(prepared["im_file"]),
                    height=height,
                    width=width,
                    boxes=scaled["bboxes"].double().cpu().numpy().reshape(-1, 4),
                    scores=scaled["conf"].double().cpu().numpy(),
                    classes=scaled["cls"].long().cpu().numpy(),
                    true_boxes=true_boxes,
                    true_classes=true_classes,
                )
            )

    def _labels(self, file: str, height: int, width: int) -> tuple[Array, NDArray[np.int64]]:
        """Return the labels of an image as the data set holds them: not letterboxed, not clipped, not rounded."""
        if not hasattr(self, "_by_file"):
            self._by_file = {label["im_file"]: label for label in self.dataloader.dataset.labels}
        label = self._by_file[file]
        x, y, w, h = label["bboxes"].astype(np.float64).reshape(-1, 4).T
        corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        return corners * [width, height, width, height], label["cls"].reshape(-1).astype(np.int64)


def _class_lookup(
    model_names: Mapping[int, str], data_names: Mapping[int, str], class_map: Mapping[str, str] | None = None
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Return the data set's index of each class of the model (-1: not there), and the classes the model lacks."""
    if dict(model_names) == dict(data_names) and not class_map:
        return None, ()
    known = set(map(normalise, model_names.values()))  # of several teachers a name may be another one's
    here = {theirs: ours for theirs, ours in (class_map or {}).items() if normalise(theirs) in known}
    mapping = ClassMap.by_name(model_names, data_names, here)
    if not mapping.pairs:
        raise UserError(
            "Model and data share no class name: the model knows "
            f"{shorten(list(model_names.values()))}; the data has {shorten(list(data_names.values()))}.",
            "Classes are matched by name: use the names of the model in the data YAML.",
        )
    lookup = torch.full((max(model_names) + 1,), -1, dtype=torch.long)
    for data_index, model_indices in mapping.pairs.items():
        lookup[list(model_indices)] = data_index
    return lookup, tuple(mapping.unmapped)


def validate(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    match_names: bool = True,
    class_map: Mapping[str, str] | None = None,
    student_view: str = "",
    trust: bool = False,
    **arguments: Any,
) -> Validation:
    """Run Ultralytics' validator once and keep the detections and labels that it scored.

    Args:
        model: a checkpoint, or a file or folder that Ultralytics exported.
        data: data YAML.
        split: the split to validate.
        match_names: compare classes by name; False compares their indices, as Ultralytics does.
        class_map: the model's class name to the data set's, where they differ.
        student_view: see `CollectingValidator`.
        trust: load a ``.pt`` whose pickle could run code.
        arguments: Ultralytics' validation arguments. No run folder is written unless one of them asks for files
            (``plots``, ``save_json``, ...) or places it (``project``, ``name``, ``save_dir``).

    Raises:
        UserError: the data cannot be read, is empty, or shares no class with the model.
    """
    with no_font_download():
        sink = Validation(names=check_data(data, split)["names"])
        keep = any(arguments.get(key) for key in WRITES)
        with restricted_loading(trust):
            yolo = YOLO(str(model), task="detect")
        with nullcontext() if keep else tempfile.TemporaryDirectory(prefix="yolokd-val-") as folder:
            place = {} if folder is None else {"project": folder, "name": "val"}
            wanted = {"plots": False, "verbose": False, **place, **arguments, "data": str(data), "split": split}
            how: dict[str, Any] = {"sink": sink, "match_names": match_names, "class_map": class_map}
            how |= {"student_view": student_view}
            scored = yolo.val(validator=partial(CollectingValidator, **how), **wanted)
    sink.map, sink.map50 = float(scored.box.map), float(scored.box.map50)
    network: Any = yolo.model
    if isinstance(network, torch.nn.Module):
        deployed = network.fuse(verbose=False)  # type: ignore[operator]
        sink.parameters = int(get_num_params(deployed))
        sink.gflops = float(get_flops(deployed, arguments.get("imgsz", 640))) or None
    return sink


def hits(boxes: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor, iou: float = 0.5) -> Tensor:
    """Which detections of an image found an object of their class, each object once.

    Args:
        boxes: ``(N, 4)`` (x1, y1, x2, y2), the surest first.
        labels: ``(N,)`` class indices.
        true_boxes: ``(M, 4)``.
        true_labels: ``(M,)``.
        iou: the overlap that counts.

    Returns:
        ``(N,)`` bool.
    """
    asked: Any = SimpleNamespace(iouv=torch.tensor([iou]))
    overlaps = box_iou(true_boxes, boxes)
    return torch.as_tensor(DetectionValidator.match_predictions(asked, labels, true_labels, overlaps)[:, 0])
