from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from tests.conftest import NAMES
from tests.helpers import head
from tests.lively import save_tiny_detr
from yolokd.compat.checkpoint import sha256
from yolokd.errors import UserError
from yolokd.teachers.detr import DetrTeacher
from yolokd.teachers.exported import ExportedTeacher
from yolokd.teachers.itself import DeepestLevel, RunningTeacher
from yolokd.teachers.live import LiveTeacher
from yolokd.teachers.opening import NOBODY, find_teacher, fingerprint, open_teacher, seat
from yolokd.teachers.panel import Panel
from yolokd.teachers.spec import TeacherSpec, read_teachers

CPU = torch.device("cpu")


def test_a_file_by_its_absolute_path(toy_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_teacher.parent)
    found = find_teacher(TeacherSpec("teacher.pt", ("red",)))
    assert found == TeacherSpec(str(toy_teacher.resolve()), ("red",))
    assert fingerprint(found) == sha256(toy_teacher)
    for spec in ("nowhere.pt", "nowhere.onnx", "x_openvino_model"):
        with pytest.raises(UserError, match="no such file"):
            find_teacher(TeacherSpec(spec))


def test_a_folder_and_none(tmp_path: Path) -> None:
    folder = tmp_path / "x_openvino_model"
    folder.mkdir()
    for name, text in (("x.xml", b"1"), ("x.bin", b"2"), ("metadata.yaml", b"date: now")):
        (folder / name).write_bytes(text)
    found = find_teacher(TeacherSpec(str(folder)))
    before = fingerprint(found)
    assert before == f"{sha256(folder / 'x.bin')}+{sha256(folder / 'x.xml')}"
    (folder / "metadata.yaml").write_bytes(b"date: later")
    assert fingerprint(found) == before
    assert fingerprint(find_teacher(TeacherSpec("self"))) == ""


def opened(text: str, side: int = 64, **exported: Any) -> Any:
    (spec,) = read_teachers(text)
    return open_teacher(spec, CPU, head(), lambda: torch.nn.Linear(1, 1), NOBODY, side, False, **exported)


def test_each_kind_is_opened(toy_teacher: Path, tmp_path: Path) -> None:
    live = opened(str(toy_teacher))
    assert isinstance(live, LiveTeacher)
    assert live.info.names == NAMES
    assert isinstance(opened("self"), RunningTeacher)
    assert isinstance(opened("self:levels"), DeepestLevel)
    detr = opened(str(save_tiny_detr(tmp_path / "detr.pt")))
    assert isinstance(detr, DetrTeacher)
    assert detr.dtype == torch.float32
    assert (detr.info.names, detr.info.strides, detr.info.reg_max) == (NAMES, (8, 16, 32), 1)
    with pytest.raises(UserError, match="trained beside this student"):
        opened("peer:other")


def test_an_exported_file_is_opened_for_the_images_that_it_will_see(toy_teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    copy = tmp_path / "t.pt"
    copy.write_bytes(toy_teacher.read_bytes())
    file = YOLO(copy).export(format="onnx", imgsz=64, simplify=False)
    teacher = opened(file, names=tuple(NAMES.values()), precision="fp32")
    assert isinstance(teacher, ExportedTeacher)
    assert teacher.fixed
    assert teacher.info.names == opened(file).info.names == NAMES
    with pytest.raises(UserError, match=r"says itself what its classes are called \(red, green, blue\)"):
        opened(file, names=("rot", "gruen", "blau"))  # of two teachers it may be the other one that is meant
    with pytest.raises(UserError, match="takes images of 64 x 64 px, the training has 96 x 96"):
        opened(file, 96)
    with pytest.raises(UserError, match="teacher_precision=bf16: an ONNX file computes as it was exported"):
        opened(file, precision="bf16")


def teacher(*names: str, strides: tuple[int, ...] = (8, 16)) -> Any:
    info = replace(head(), names=dict(enumerate(names)), strides=strides, widths=(4,) * len(strides))
    return SimpleNamespace(info=info, name="told")


def seated(
    text: str, *teachers: Any, overrides: dict[str, str] | None = None, only: set[int] | None = None, **more: Any
) -> Panel:
    student = replace(head(), names={0: "red", 1: "green", 2: "motorcycle", 3: "blue"})
    settings = {"weights": (), "ratio": 1.0, **more}
    return seat(read_teachers(text), teachers, student, overrides=overrides or {}, only=only, **settings)


def pairs(panel: Panel) -> list[dict[int, tuple[int, ...]]]:
    return [dict(view.class_map.pairs) for view in panel.views]


def test_specialists_speak_for_their_own_classes_by_name() -> None:
    them = seated("a.pt:Red+motorbike,b.pt:blue", teacher("blue", "motorbike", "red"), teacher("red", "blue", "green"))
    assert pairs(them) == [{0: (2,), 2: (1,)}, {3: (1,)}]  # motorbike by alias; green is spoken for by nobody


def test_an_ensemble_with_other_class_orders() -> None:
    them = seated("a.pt,b.pt", teacher("green", "red"), teacher("red", "green"))
    assert pairs(them) == [{0: (1,), 1: (0,)}, {0: (0,), 1: (1,)}]
    assert them.weights == (0.5, 0.5)
    assert seated("a.pt,b.pt", teacher("red"), teacher("red"), weights=(3.0, 1.0)).weights == (0.75, 0.25)


def test_class_map_goes_to_whoever_knows_the_name() -> None:
    both = teacher("rot", "green"), teacher("red", "verde")
    them = seated("a.pt,b.pt", *both, overrides={"Rot": "red", "verde": "green"})
    assert pairs(them) == [{0: (0,), 1: (1,)}, {0: (0,), 1: (1,)}]
    with pytest.raises(UserError, match="class_map names gelb, which the teacher does not know"):
        seated("a.pt,b.pt", *both, overrides={"gelb": "red"})
    with pytest.raises(UserError, match="class_map names verde"):  # b.pt knows it, but is not asked for it
        seated("a.pt,b.pt:red", *both, overrides={"verde": "green"})
    with pytest.raises(UserError, match="class_map names purple, which the student does not know"):
        seated("a.pt,b.pt", *both, overrides={"rot": "purple"})


def test_only_the_trained_classes() -> None:
    assert pairs(seated("a.pt,b.pt", teacher("green", "red"), teacher("red"), only={0})) == [{0: (1,)}, {0: (0,)}]


def test_a_class_that_a_specialist_does_not_know_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        seated("a.pt:red+dog", teacher("red", "green"))
    assert caught.value.problem == "teacher=a.pt is to speak for dog, which it does not know."
    assert caught.value.remedy == "Its classes are: red, green."


def test_levels_that_all_share() -> None:
    them = seated("a.pt,b.pt", teacher("red", strides=(8, 16)), teacher("red", strides=(4, 16)))
    assert them.levels == (1,)
    assert [view.match.teacher for view in them.views] == [(1,), (1,)]
    with pytest.raises(UserError, match=r"No pyramid level .* \(strides 8, 16\).*\(strides 8, 16; 4, 32\)"):
        seated("a.pt,b.pt", teacher("red"), teacher("red", strides=(4, 32)))
    without = teacher("red", strides=())
    assert seated("a.pt,b.onnx", teacher("red", strides=(16,)), without).levels == (1,)
    assert seated("b.onnx", without).levels == (0, 1)
    assert seated("b.onnx", without).whole


def named(key: bytes, value: bytes) -> bytes:
    """An entry of a tensor's external_data in an ONNX file: field 1 the key, field 2 the value, lengths before both."""
    size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
    return b"\x0a" + bytes([len(key)]) + key + b"\x12" + size + value


def test_weights_that_an_onnx_file_keeps_beside_it_are_a_part_of_it(tmp_path: Path) -> None:
    file, long = tmp_path / "t.onnx", "w" * 200
    file.write_bytes(b"graph" + named(b"offset", b"0"))
    spec = TeacherSpec(str(file))
    (tmp_path / "t.onnx.data").write_bytes(b"left over")
    assert fingerprint(spec) == sha256(file)  # it names none: as ever
    entries = [named(b"location", name) for name in (b"t.onnx.data", long.encode(), b"t.onnx.data", b"gone", b"\xff\0")]
    file.write_bytes(b"graph" + b" and ".join(entries) + b"\x0a\x08location\x12")
    (tmp_path / long).write_bytes(b"more")
    before = fingerprint(spec)
    assert before == "+".join(sha256(tmp_path / name) for name in ("t.onnx", "t.onnx.data", long))
    (tmp_path / long).write_bytes(b"else")
    assert fingerprint(spec) != before


def test_a_real_onnx_file_with_its_weights_beside_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "ab"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["a", "w"], ["b"])], "g", ends[:1], ends[1:], [weights]
    )
    model, file = onnx.helper.make_model(graph), tmp_path / "t.onnx"
    onnx.save_model(model, str(file), save_as_external_data=True, location="t.bin", size_threshold=0)
    assert fingerprint(TeacherSpec(str(file))) == f"{sha256(file)}+{sha256(tmp_path / 't.bin')}"


def test_the_classes_beside_an_openvino_model_are_a_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "x_openvino_model"
    folder.mkdir()
    for name in ("x.xml", "x.bin"):
        (folder / name).write_text(name)
    prints = []
    for text in (
        "date: now\nnames: {0: a, 1: b}",
        "date: later\nnames: [a, b]",
        "names: {0: b, 1: a}",
        "names: 5",
        "a:\n-",
    ):
        (folder / "metadata.yaml").write_text(text)
        prints.append([fingerprint(TeacherSpec(str(path))) for path in (folder, folder / "x.xml")])
    for kind in range(2):
        dated, later, swapped, none, broken = (pair[kind] for pair in prints)
        assert dated == later != swapped
        assert none == broken == dated.rpartition("+")[0]
