import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel

from yolokd.compat.boxes import anchor_points, decode, expected_distances
from yolokd.compat.checkpoint import load_detector
from yolokd.compat.exporting import export_file
from yolokd.errors import UserError
from yolokd.teachers.exported import ExportedTeacher
from yolokd.teachers.live import LiveTeacher

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
SIZE = (64, 96)
NAMES = {0: "red", 1: "green", 2: "blue"}
META = {"author": "Ultralytics", "task": "detect", "names": str(NAMES)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLO11-n with random weights whose scores and boxes differ from anchor to anchor."""
    from ultralytics import YOLO

    torch.manual_seed(0)
    yolo = YOLO("yolo11n.yaml")
    yolo.model = DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    yolo.model.names, yolo.model.args = NAMES, {}
    for branch, std, bias in ((yolo.model.model[-1].cv2, 0.5, None), (yolo.model.model[-1].cv3, 0.2, -1.0)):
        for level in branch:
            torch.nn.init.normal_(level[-1].weight, std=std)
            if bias is not None:
                torch.nn.init.constant_(level[-1].bias, bias)
    with torch.no_grad():  # else the activations die away, layer by layer, and every anchor says the same
        for norm in (m for m in yolo.model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = None
        yolo.model.train()(torch.rand(8, 3, *SIZE))
    path = tmp_path_factory.mktemp("export") / "tiny.pt"
    yolo.save(path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """For one image of one size."""
    return export_file(checkpoint, "onnx", imgsz=SIZE, simplify=False)


@pytest.fixture(scope="module")
def with_nms(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For any size, with non-maximum suppression; it loops over one image, whatever it is given."""
    copy = tmp_path_factory.mktemp("nms") / "nms.pt"
    copy.write_bytes(checkpoint.read_bytes())
    return export_file(copy, "onnx", imgsz=SIZE, dynamic=True, nms=True, simplify=False)


@pytest.fixture(scope="module")
def in_openvino(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("ov") / "tiny_openvino_model"
    openvino.save_model(openvino.convert_model(str(exported)), str(folder / "tiny.xml"), compress_to_fp16=False)
    meta = {"author": "Ultralytics", "names": NAMES, "args": {"nms": None}, "batch": 1}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(meta))
    return folder


def stub(
    path: Path,
    outputs: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    shape: tuple[Any, ...] = (1, 3, *SIZE),
    dtype: str = "FLOAT",
    inputs: tuple[str, ...] = ("images",),
) -> Path:
    """An ONNX file that says always the same."""
    helper = onnx.helper
    values = {key: np.asarray(value) for key, value in outputs.items()}
    values = {key: v.astype(np.float32) if v.dtype == np.float64 else v for key, v in values.items()}
    nodes = [helper.make_node("Constant", [], [k], value=onnx.numpy_helper.from_array(v)) for k, v in values.items()]
    kinds = [helper.make_tensor_value_info(n, getattr(onnx.TensorProto, dtype), shape) for n in inputs]
    given = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in values.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", kinds, given), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, str(path))
    return path


def photographs(count: int = 3) -> torch.Tensor:
    """Images whose channels differ, so that RGB is not BGR."""
    noise = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([0.2, 0.6, 1.0])[:, None, None]


# Dense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exported", "in_openvino"])
def test_a_raw_export_says_what_the_live_teacher_says(
    kind: str, checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    teacher = ExportedTeacher(request.getfixturevalue(kind), SIZE, precision="fp32")
    live = LiveTeacher(load_detector(checkpoint, role="teacher"), CPU, "fp32")
    images = photographs()
    said, wanted = teacher({"img": images}), live.forward(images)
    assert said.scores is not None
    assert said.boxes is not None
    assert wanted.scores is not None
    assert wanted.boxes is not None
    assert wanted.feats is not None
    assert said.feats is None
    assert teacher.info.strides == (8, 16, 32)
    assert (teacher.info.names, teacher.info.reg_max, teacher.info.widths) == (NAMES, 1, ())
    assert torch.allclose(said.scores, wanted.scores, atol=1e-3)
    distances = expected_distances(wanted.boxes.transpose(1, 2))
    assert distances.std() > 0.3  # the anchors differ, so a wrong order would show
    assert torch.allclose(said.boxes.transpose(1, 2), distances, atol=1e-3)
    assert not torch.allclose(live.forward(images.flip(1)).scores, wanted.scores, atol=1e-2)  # type: ignore[arg-type]
    assert torch.allclose(teacher.forward(images[:1]).boxes, said.boxes[:1], atol=1e-5)  # type: ignore[arg-type]


def test_bf16_in_openvino_is_near(in_openvino: Path) -> None:
    images = photographs()
    exact = ExportedTeacher(in_openvino, SIZE, precision="fp32").forward(images)
    rough = ExportedTeacher(in_openvino, SIZE, precision="bf16").forward(images)
    assert (exact.scores.sigmoid() - rough.scores.sigmoid()).abs().mean() < 0.02  # type: ignore[union-attr]


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


# Detections -------------------------------------------------------------------------------------------------------


def test_nms_export_over_a_batch_against_the_dense_teacher(with_nms: Path, checkpoint: Path) -> None:
    images = photographs()
    teacher = ExportedTeacher(with_nms, SIZE)
    said = teacher({"img": images})
    assert (said.scores, said.boxes, teacher.info.strides) == (None, None, ())
    found = said.detections
    assert found is not None
    dense = LiveTeacher(load_detector(checkpoint, role="teacher"), CPU, "fp32").forward(images)
    assert dense.feats is not None
    points, strides = anchor_points(dense.feats, (8, 16, 32))
    boxes = decode(expected_distances(dense.boxes.transpose(1, 2)), points, strides)  # type: ignore[union-attr]
    for i in range(len(images)):
        best, anchor = dense.scores[i].sigmoid().amax(0).max(0)  # type: ignore[index]
        mine = found.scores[found.image == i]
        assert len(mine) > 3
        top = mine.amax(1).argmax()
        assert mine[top].max().item() == pytest.approx(best.item(), abs=1e-4)
        assert mine[top].argmax() == dense.scores[i, :, anchor].argmax()  # type: ignore[index]
        assert torch.allclose(found.boxes[found.image == i][top], boxes[i, anchor], atol=0.05)


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


# Refused ----------------------------------------------------------------------------------------------------------

ROW = [[[1.0, 2, 3, 4, 0.9, 0]]]
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no names": ({"outputs": {"o": ROW}}, {}, "what its classes are called", "teacher_names="),
    "another size": ({"shape": (1, 3, 640, 640)}, {}, "640 x 640 px, the training has 96 x 64", "imgsz=96"),
    "grey images": ({"shape": (1, 1, *SIZE)}, {}, "1 x 1 x 64 x 96 in float32, not RGB", "such an input"),
    "channels last": ({"shape": (1, *SIZE, 3)}, {}, "not RGB images", "such an input"),
    "bytes": ({"dtype": "UINT8"}, {}, "not RGB images", "such an input"),
    "two inputs": ({"inputs": ("images", "sizes")}, {}, "takes 2 inputs", "Export it again"),
    "masks": ({"outputs": {"o": np.zeros((1, 39, 126)), "p": np.zeros((1, 32, 16, 24))}}, {}, "cannot read", "boxes"),
    "another number of classes": ({"outputs": {"o": np.zeros((1, 9, 126))}}, {}, "for 3 classes", "Ultralytics'"),
    "a precision": ({}, {"precision": "bf16"}, "computes as it was exported", "OpenVINO"),
    "a format": ({}, {"box_format": "yxyx"}, "no format of boxes", "xyxy"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_teach_is_refused_in_two_lines(tmp_path: Path, case: str) -> None:
    made, asked, problem, remedy = BAD[case]
    meta = {} if case == "no names" else META
    path = stub(tmp_path / "a.onnx", made.pop("outputs", {"o": ROW}), meta, **made)
    with pytest.raises(UserError) as error:
        ExportedTeacher(path, SIZE, **asked)
    first, second = str(error.value).splitlines()
    assert problem in first
    assert remedy in second


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


def test_a_fixed_export_refuses_another_size_in_training(exported: Path) -> None:
    teacher = ExportedTeacher(exported, SIZE)
    with pytest.raises(UserError, match="takes images of 96 x 64 px, the training has 64 x 64"):
        teacher.forward(torch.rand(1, 3, 64, 64))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "empty_openvino_model").mkdir()
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x09 no model")
    for name, problem in (
        ("none.onnx", "no such file"),
        ("empty_openvino_model", "no such file"),
        ("torn.onnx", "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=problem):
            ExportedTeacher(tmp_path / name, SIZE)


@pytest.mark.parametrize(("suffix", "package"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        ExportedTeacher(tmp_path / f"a{suffix}", SIZE)
    assert str(error.value).splitlines()[1] == f"pip install {package}"


def test_metadata_is_read_and_never_run(tmp_path: Path) -> None:
    names = "__import__('pathlib').Path('ran').touch() or {0: 'a'}"
    with pytest.raises(UserError, match="what its classes are called"):
        ExportedTeacher(stub(tmp_path / "a.onnx", {"o": ROW}, {"names": names}), SIZE)
    assert not Path("ran").exists()


@pytest.mark.parametrize(("device", "wanted"), [("cuda:1", 1), ("cuda", 0), ("cpu", None)])
def test_an_onnx_file_computes_on_the_gpu_that_it_was_opened_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, wanted: int | None
) -> None:
    import onnxruntime

    session, asked = onnxruntime.InferenceSession, []

    def cpu_only(file: str, options: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        return session(file, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", cpu_only)
    have = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: have)
    teacher = ExportedTeacher(stub(tmp_path / "a.onnx", {"o": ROW}, META), SIZE, torch.device(device))
    gpu = [] if wanted is None else [("CUDAExecutionProvider", {"device_id": wanted})]
    assert asked == [[*gpu, ("CPUExecutionProvider", {})]]
    assert teacher.on_cpu  # what the session says, not what was asked of it
