"""Teachers that cannot do what is asked of them: two lines, exit code 2, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ultralytics import YOLO

from tests.conftest import train_words
from tests.lively import save_tiny_detr

# What is asked, what is wrong with it, what to do; {teacher}, {student} and {data} are files that are there.
Row = tuple[dict[str, str], str, str]
STORED: list[Row] = [
    ({"teacher": "{teacher},{student}"}, "the answers of one teacher that stays as it is", "Name one file"),
    ({"teacher": "self"}, "stays as it is, not of teacher=self", "Name one file"),
    ({"teacher": "self:levels"}, "stays as it is, not of teacher=self:levels", "Name one file"),
    ({"losses": "cwd"}, "cwd needs feats; teacher_cache= replays", "leave out teacher_cache="),
    ({"losses": "cls,crosskd"}, "crosskd needs reenter; teacher_cache= replays", "Leave crosskd out"),
    ({"cwd.temperature": "2"}, "cwd needs feats; teacher_cache= replays", "leave out teacher_cache="),
    ({"taps": "4,6,10"}, "taps= and teacher_cache= do not go together", "Leave out taps="),
    ({"taps": "4,6,10", "losses": "cls,cwd"}, "taps= and teacher_cache= do not", "Leave out taps="),
    ({"teacher_compile": "True"}, "teacher_compile= and teacher_cache= do not", "leave out teacher_cache="),
    ({"teacher_precision": "fp16"}, "scores are stored in fp32", "Leave out teacher_precision="),
    ({"teacher_cache": "{data}"}, "is no folder and cannot become one", "Name a folder"),
    ({"teacher_imgsz": "80"}, "in multiples of 32", "teacher_imgsz=1280"),
]
EXPORTED: list[Row] = [
    ({"losses": "box,cwd"}, "The loss cwd needs feats", "Leave cwd out"),
    ({"losses": "crosskd"}, "the teacher gives no way in", "yolokd losses"),
    ({"taps": "4,6,10", "losses": "cls,cwd"}, "The loss cwd needs feats", "Leave cwd out"),
    ({"taps": "4,6,10"}, "has none to look into", "Leave out taps="),
    ({"imgsz": "96"}, "takes images of 64 x 64 px, the training has 96 x 96", "imgsz=96 or dynamic=True"),
    ({"teacher_imgsz": "128"}, "takes images of 64 x 64 px, the training has 128 x 128", "dynamic=True"),
    ({"multi_scale": "0.5"}, "takes images of one size, and multi_scale= changes theirs", "dynamic=True"),
    ({"rect": "True"}, "takes images of one size, and rect= changes theirs", "Leave out rect="),
    ({"teacher_precision": "bf16"}, "teacher_precision=bf16: an ONNX file computes as it was", "OpenVINO"),
    ({"teacher_compile": "True"}, "teacher_compile= compiles a YOLO that is a network", "Leave out"),
    ({"teacher_names": "cat,dog,cow"}, "says itself what its classes are called (red, green, blue)", "class_map"),
    ({"teacher_names": "cat,,cow"}, "teacher_names=cat,,cow has an empty place", "in order"),
    ({"teacher_boxes": "corners"}, "teacher_boxes=corners is no format of boxes", "xyxy"),
    ({"teacher_cache": "{data}"}, "is no folder", "Name a folder"),
    ({"teacher": "missing.onnx"}, "teacher=missing.onnx: no such file", "path"),
    ({"teacher": "missing_openvino_model"}, "no such file", "path"),
    ({"teacher": "{data}.onnx"}, "no such file", "path"),
]
RTDETR: list[Row] = [
    ({"losses": "cls,crosskd"}, "the teacher gives no way in", "yolokd losses"),
    ({"taps": "4:4,6:6", "losses": "cwd"}, "teacher: there is no layer 6", "one feature map"),
    ({"teacher_compile": "True"}, "teacher_compile= compiles a YOLO that is a network", "Leave out"),
    ({"student": "{teacher}"}, "is an RT-DETR", "a detector of YOLOv8"),
    ({"teacher_names": "a,b,c"}, "teacher_names is for an exported teacher", "Leave out teacher_names="),
]
KINDS = {"stored": STORED, "exported": EXPORTED, "rtdetr": RTDETR}


@pytest.fixture(scope="module")
def onnx_teacher(toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy teacher, exported for images of 64 px."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    copy = tmp_path_factory.mktemp("onnx") / "teacher.pt"
    copy.write_bytes(toy_teacher.read_bytes())
    return Path(YOLO(copy).export(format="onnx", imgsz=64, simplify=False))


@pytest.mark.parametrize(
    ("kind", "changes", "problem", "remedy"), [(kind, *row) for kind, rows in KINDS.items() for row in rows]
)
def test_what_a_teacher_cannot_do(
    refused: Callable[..., tuple[str, str]],
    request: pytest.FixtureRequest,
    toy_teacher: Path,
    toy_student: Path,
    toy_data: Path,
    here: Path,
    tmp_path: Path,
    kind: str,
    changes: dict[str, str],
    problem: str,
    remedy: str,
) -> None:
    asked, teacher = {}, toy_teacher
    if kind == "stored":
        asked = {"teacher_cache": str(here / "cache")}
    elif kind == "exported":
        teacher = request.getfixturevalue("onnx_teacher")
    else:
        teacher = save_tiny_detr(tmp_path / "detr.pt")
    files = {"teacher": teacher, "student": toy_student, "data": toy_data}
    asked |= {key: value.format(**files) for key, value in changes.items()}
    first, second = refused(*train_words(teacher, toy_student, toy_data, **asked))
    assert problem in first
    assert remedy in second


def test_a_damaged_onnx_file(
    refused: Callable[..., tuple[str, str]], onnx_teacher: Path, toy_student: Path, toy_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "torn.onnx"
    file.write_bytes(onnx_teacher.read_bytes()[:40_000])
    assert "cannot be loaded" in refused(*train_words(file, toy_student, toy_data))[0]
