from __future__ import annotations

from pathlib import Path

import pytest

from yolokd.teachers.spec import TeacherSpec, read_teachers, shares


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("a.pt", [("a.pt", (), "checkpoint")]),
        ("yolo11x", [("yolo11x", (), "checkpoint")]),
        ("a.pt, b.pt", [("a.pt", (), "checkpoint"), ("b.pt", (), "checkpoint")]),
        ("a.pt:person+car,b.pt:dog", [("a.pt", ("person", "car"), "checkpoint"), ("b.pt", ("dog",), "checkpoint")]),
        ("a.pt:traffic light + stop sign", [("a.pt", ("traffic light", "stop sign"), "checkpoint")]),
        (r"C:\models\a.pt", [(r"C:\models\a.pt", (), "checkpoint")]),
        (r"C:\models\a.pt:dog", [(r"C:\models\a.pt", ("dog",), "checkpoint")]),
        ("https://host/a.pt", [("https://host/a.pt", (), "checkpoint")]),
        ("https://host:80/a.pt:dog", [("https://host:80/a.pt", ("dog",), "checkpoint")]),
        ("dir:x/a.pt", [("dir:x/a.pt", (), "checkpoint")]),
        ("model.onnx:dog", [("model.onnx", ("dog",), "onnx")]),
        ("x_openvino_model/", [("x_openvino_model/", (), "openvino")]),
        ("x_openvino_model:dog", [("x_openvino_model", ("dog",), "openvino")]),
        ("x_openvino_model/x.xml:dog", [("x_openvino_model/x.xml", ("dog",), "openvino")]),
        ("myonnx", [("myonnx", (), "checkpoint")]),
        ("self", [("self", (), "self")]),
        ("self:levels", [("self", (), "levels")]),
        ("self.pt", [("self.pt", (), "checkpoint")]),
    ],
)
def test_read(text: str, specs: list[tuple[str, tuple[str, ...], str]]) -> None:
    found = read_teachers(text)
    assert [(spec.path, spec.classes, spec.kind) for spec in found] == specs
    assert read_teachers(",".join(str(spec) for spec in found)) == found  # as it is written, it is read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.pt,", "empty place"),
        ("a.pt,,b.pt", "empty place"),
        ("a.pt:", "names no class"),
        ("a.pt:dog+", "names no class"),
        ("self,a.pt", "one of several"),
        ("a.pt,self:levels", "one of several"),
        ("self:level", "did you mean self:levels"),
        ("Self", "did you mean self"),
        ("born_again", "did you mean born-again"),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_teachers(text)


def test_a_path_may_have_a_comma(tmp_path: Path) -> None:
    file = tmp_path / "a,b" / "t.pt"
    file.parent.mkdir()
    file.touch()
    assert read_teachers(str(file)) == (TeacherSpec(str(file)),)


def test_the_same_teacher_elsewhere() -> None:
    assert TeacherSpec("a.pt", ("dog",)).at(Path("/b/c.pt")) == TeacherSpec("/b/c.pt", ("dog",))


def test_shares_sum_to_one() -> None:
    assert shares((), 4) == (0.25,) * 4
    assert shares((3, 1), 2) == (0.75, 0.25)
