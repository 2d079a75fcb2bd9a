"""What the outputs of an exported detector mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.teachers.exports import META, NAMES, SIZE, onnx, photographs, stub
from yolokd.errors import UserError
from yolokd.teachers.exported import ExportedTeacher


def test_certain_probabilities_give_finite_logits(tmp_path: Path) -> None:
    output = np.zeros((1, 7, 126))
    output[:, 4] = 1
    said = ExportedTeacher(stub(tmp_path / "a.onnx", {"output0": output}, META), SIZE).forward(photographs(2))
    assert said.scores is not None
    assert torch.isfinite(said.scores).all()
    assert said.scores[:, 0].min() > 10
    assert said.scores[:, 1].max() < -10


def test_other_pyramids_are_recognised_by_the_number_of_anchors(tmp_path: Path) -> None:
    for strides in ((4, 8, 16, 32), (8, 16, 32, 64)):
        size = (64, 128)
        anchors = sum((size[0] // s) * (size[1] // s) for s in strides)
        path = stub(tmp_path / f"{anchors}.onnx", {"o": np.zeros((1, 7, anchors))}, META, (1, 3, *size))
        assert ExportedTeacher(path, size).info.strides == strides


def test_end2end_rows_are_corners_in_pixels_and_one_box_is_one_detection(tmp_path: Path) -> None:
    rows = np.zeros((1, 5, 6))
    rows[0, :3] = [[10, 20, 30, 50, 0.9, 2], [10, 20, 30, 50, 0.3, 0], [0, 0, 96, 64, 0.01, 1]]
    rows[0, 3] = [10, 20, 30, 50, 0.4, 2]  # the same once more, less sure
    found = ExportedTeacher(stub(tmp_path / "a.onnx", {"o": rows}, META), SIZE).forward(photographs(2)).detections
    assert found is not None
    assert found.image.tolist() == [0, 1]
    assert found.boxes.tolist() == [[10, 20, 30, 50]] * 2
    assert found.scores.flatten().tolist() == pytest.approx([0.3, 0, 0.9] * 2)


def test_rows_of_an_rtdetr_are_centres_in_shares(tmp_path: Path) -> None:
    rows = np.array([[[0.5, 0.5, 0.25, 0.5, 0.9, 1]]])
    path = stub(tmp_path / "a.onnx", {"o": rows}, META | {"head": "RTDETRDecoder"})
    found = ExportedTeacher(path, SIZE).forward(photographs(1)).detections
    assert found is not None
    assert found.boxes.tolist() == [[36, 16, 60, 48]]


CORNERS = np.array([[4.0, 8, 24, 40], [48, 16, 96, 64], [60, 2, 90, 20]])
SHARES = CORNERS / [96, 64, 96, 64]


def centres(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


@pytest.mark.parametrize("form", [None, "said"])
@pytest.mark.parametrize(
    ("word", "boxes"),
    [("xyxy", CORNERS), ("xyxyn", SHARES), ("xywh", centres(CORNERS)), ("xywhn", centres(SHARES))],
)
def test_the_format_of_boxes_is_found_out(tmp_path: Path, word: str, boxes: np.ndarray, form: str | None) -> None:
    scores = np.array([[0.1, 0.8, 0], [0.7, 0, 0.2], [0, 0, 0.5]])
    path = stub(tmp_path / "a.onnx", {"pred_boxes": boxes[None], "scores": scores[None]}, {"names": str(NAMES)})
    found = ExportedTeacher(path, SIZE, box_format=form and word).forward(photographs(1)).detections
    assert found is not None
    assert torch.allclose(found.boxes, torch.tensor(CORNERS).float(), atol=1e-4)
    assert torch.allclose(found.scores, torch.tensor(scores).float())


def test_boxes_that_could_be_meant_either_way_are_refused(tmp_path: Path) -> None:
    outputs = {"boxes": [[[30.0, 20, 50, 30]]], "scores": [[[0.9, 0, 0]]]}
    path = stub(tmp_path / "a.onnx", outputs, {"names": str(NAMES)})
    with pytest.raises(UserError, match="corners as well as centre") as error:
        ExportedTeacher(path, SIZE).forward(photographs(1))
    assert "teacher_boxes=" in str(error.value)
    found = ExportedTeacher(path, SIZE, box_format="xywh").forward(photographs(1)).detections
    assert found is not None
    assert found.boxes.tolist() == [[5, 5, 55, 35]]


@pytest.mark.parametrize("batched", [True, False])
def test_boxes_scores_and_labels(tmp_path: Path, batched: bool) -> None:
    """As torchvision exports: one image without a dimension for images, or with one."""
    outputs = {"labels": np.array([2, 0, 1]), "boxes": CORNERS, "scores": np.array([0.9, 0.5, 0.04])}
    shape: tuple[Any, ...] = (3, "h", "w")
    if batched:
        outputs, shape = {k: v[None] for k, v in outputs.items()}, (1, 3, "h", "w")
    path = stub(tmp_path / "a.onnx", outputs, shape=shape)
    found = ExportedTeacher(path, SIZE, names=["a", "b", "c"]).forward(photographs(2)).detections
    assert found is not None
    assert found.image.tolist() == [0, 0, 1, 1]
    assert found.scores[:2].flatten().tolist() == pytest.approx([0, 0, 0.9, 0.5, 0, 0])
    assert torch.allclose(found.boxes[:2], torch.tensor(CORNERS[:2]).float())


def test_images_with_other_numbers_of_boxes_and_with_none(tmp_path: Path) -> None:
    """As many boxes as the image is bright; none for a black one."""
    helper = onnx.helper
    const = {"all": CORNERS.astype(np.float32), "sc": np.array([0.9, 0.8, 0.7], np.float32), "ax": np.array([0])}
    nodes = [helper.make_node("Constant", [], [k], value=onnx.numpy_helper.from_array(v)) for k, v in const.items()]
    nodes += [
        helper.make_node("ReduceMax", ["images"], ["max"], keepdims=0),
        helper.make_node("Cast", ["max"], ["int"], to=onnx.TensorProto.INT64),
        helper.make_node("Unsqueeze", ["int", "ax"], ["end"]),
        helper.make_node("Slice", ["all", "ax", "end"], ["boxes"]),
        helper.make_node("Slice", ["sc", "ax", "end"], ["scores"]),
        helper.make_node("Cast", ["scores"], ["zeros"], to=onnx.TensorProto.INT64),
        helper.make_node("Identity", ["zeros"], ["labels"]),
    ]
    info, proto = helper.make_tensor_value_info, onnx.TensorProto
    graph = helper.make_graph(
        nodes,
        "g",
        [info("images", proto.FLOAT, [3, *SIZE])],
        [
            info("boxes", proto.FLOAT, ["n", 4]),
            info("scores", proto.FLOAT, ["n"]),
            info("labels", proto.INT64, ["n"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "a.onnx"))
    teacher = ExportedTeacher(tmp_path / "a.onnx", SIZE, names=["a", "b"], box_format="xyxy")
    images = torch.stack([torch.full((3, *SIZE), v) for v in (2.0, 0.0, 3.0)])
    found = teacher.forward(images).detections
    assert found is not None
    assert found.image.tolist() == [0, 0, 2, 2, 2]
    assert torch.allclose(found.boxes, torch.tensor(CORNERS[[0, 1, 0, 1, 2]]).float())
    nothing = teacher.forward(images[1:2]).detections
    assert nothing is not None
    assert len(nothing.image) == 0


def test_the_format_that_was_found_is_known(tmp_path: Path) -> None:
    teacher = ExportedTeacher(
        stub(tmp_path / "a.onnx", {"boxes": CORNERS[None], "scores": np.full((1, 3, 3), 0.5)}),
        SIZE,
        names=["a", "b", "c"],
    )
    assert teacher.box_format is None
    teacher.forward(photographs(1))
    assert teacher.box_format == "xyxy"


def test_six_numbers_a_row_that_are_no_detections(tmp_path: Path) -> None:
    """An older export of an RT-DETR with two classes: a box in shares, and two probabilities."""
    metadata = {"names": "{0: 'a', 1: 'b'}", "author": "Ultralytics"}
    path = stub(tmp_path / "a.onnx", {"o": [[[0.5, 0.5, 0.4, 0.4, 0.05, 0.95]]]}, metadata)
    with pytest.raises(UserError, match="the last is no class"):
        ExportedTeacher(path, SIZE).forward(photographs(1))


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ({"o": [[[1.0, 2, 3, 4, 0.9, 7]]]}, "labels from 7 to 7, with names for 3"),
        ({"o": [[[1.0, 2, 3, 4, 2.5, 0]]]}, "no probabilities"),
        ({"boxes": CORNERS[None], "logits": np.full((1, 3, 3), -3.0)}, "no probabilities"),
    ],
)
def test_values_that_mean_something_else_are_refused(tmp_path: Path, outputs: dict[str, Any], problem: str) -> None:
    teacher = ExportedTeacher(stub(tmp_path / "a.onnx", outputs, META), SIZE)
    with pytest.raises(UserError, match=problem):
        teacher.forward(photographs(1))
