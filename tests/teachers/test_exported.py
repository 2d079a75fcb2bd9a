import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel

from tests.teachers.exports import META, NAMES, SIZE, photographs, stub
from yolokd.compat.boxes import anchor_points, decode, expected_distances
from yolokd.compat.checkpoint import load_detector
from yolokd.compat.exporting import export_file
from yolokd.errors import UserError
from yolokd.teachers.exported import ExportedTeacher
from yolokd.teachers.live import LiveTeacher

CPU = torch.device("cpu")


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
