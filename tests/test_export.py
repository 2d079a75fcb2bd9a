from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolokd import export
from yolokd.errors import UserError
from yolokd.evaluation.agreement import Agreement
from yolokd.export import Exported, check_formats, export_model, export_table, milliseconds, missing_packages


class FakeRunner:
    """Finds one box a picture; an exported file finds it two pixels further right. No image is read."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path, self.settings = path, settings
        if path.name == "best.ncnn":
            raise RuntimeError("the runtime does not start\nand says more")

    def __call__(self, image: Path, conf: float) -> tuple[np.ndarray, float]:
        shift = 0.0 if self.path.suffix == ".pt" else 2.0
        return np.array([[shift, 0.0, 100.0 + shift, 50.0, 0.9 - shift / 100, 3.0]]), 7.0 + shift


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A checkpoint whose exports are 100 bytes, and what the exporter was called with."""
    model = tmp_path / "best.pt"
    model.write_bytes(bytes(300))
    calls: list[dict[str, Any]] = []

    def exporter(path: Path, form: str, **settings: Any) -> Path:
        calls.append({"form": form, **settings})
        if form == "paddle":
            raise ModuleNotFoundError("No module named 'x2paddle.convert'", name="x2paddle.convert")
        if form == "mnn":
            raise ValueError("cannot export this layer\nat all")
        file = path.with_suffix(f".{form}")
        file.write_bytes(bytes(100))
        return file

    monkeypatch.setattr(export, "safely_loaded", lambda path, trust: Path(path))
    monkeypatch.setattr(export, "export_file", exporter)
    monkeypatch.setattr(export, "Runner", FakeRunner)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "openvino" else object())
    return model, calls


def test_each_format_is_measured_and_none_stops_the_others(faked: Any) -> None:
    rows = export_model(faked[0], ["mnn", "openvino", "paddle", "ncnn", "onnx"], imgsz=320)
    assert [row.format for row in rows] == ["pytorch", "mnn", "openvino", "paddle", "ncnn", "onnx"]
    assert rows[0] == Exported("pytorch", faked[0], 300, 7.0)
    assert rows[1] == Exported("mnn", failure="ValueError: cannot export this layer")
    assert rows[2] == Exported("openvino", missing='pip install "yolokd[export]"')
    assert rows[3] == Exported("paddle", missing="pip install x2paddle")
    assert rows[4].failure == "RuntimeError: the runtime does not start"
    assert rows[4].path == faked[0].with_suffix(".ncnn")  # it was written, though it does not run
    assert (rows[5].path, rows[5].size, rows[5].milliseconds) == (faked[0].with_suffix(".onnx"), 100, 9.0)
    assert rows[5].agreement is not None
    assert (rows[5].agreement.boxes, rows[5].agreement.matched) == (2, 1.0)  # one in each of the two photographs
    assert (rows[5].agreement.box, rows[5].agreement.score) == pytest.approx((2.0, 0.02))


def test_a_format_whose_package_is_missing_is_not_tried(faked: Any) -> None:
    export_model(faked[0], ["openvino"])
    assert faked[1] == []


def test_arguments_reach_the_exporter_and_data_only_where_it_calibrates(
    faked: Any, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export._Measure, "map", lambda self, path: 0.5)
    export_model(faked[0], ["onnx"], imgsz=320, data=toy_data, opset=17)
    export_model(faked[0], ["onnx", "torchscript"], data=toy_data, int8=True)
    assert faked[1][0] == {"form": "onnx", "trust": False, "imgsz": 320, "device": "cpu", "opset": 17}
    assert faked[1][1]["data"] == str(toy_data)
    assert "data" not in faked[1][2]  # TorchScript has no int8: Ultralytics refuses the argument


def test_images_of_a_folder_are_compared(faked: Any, toy_data: Path) -> None:
    rows = export_model(faked[0], ["onnx"], images=toy_data.parent / "images" / "train")
    assert rows[1].agreement is not None
    assert rows[1].agreement.boxes == 8


def test_many_images_are_thinned_out(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / f"{i:02}.jpg").touch()
    chosen = export._images(None, "val", tmp_path)
    assert len(chosen) == export.MOST_IMAGES
    assert [file.name for file in chosen[:3]] == ["00.jpg", "03.jpg", "06.jpg"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        export._images(None, "val", tmp_path)


def test_formats_are_checked_before_anything_is_done() -> None:
    assert check_formats([" ONNX", "ncnn", "onnx", ""]) == ["onnx", "ncnn"]
    with pytest.raises(UserError, match="format=onx is unknown") as error:
        check_formats(["onnx", "onx"])
    assert "torchscript, onnx, openvino" in error.value.remedy
    with pytest.raises(UserError, match="names no format"):
        check_formats([])


def test_only_a_checkpoint_is_exported(tmp_path: Path) -> None:
    file = tmp_path / "best.onnx"
    file.touch()
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        export_model(file, ["onnx"])


@pytest.mark.parametrize(
    ("absent", "form", "int8", "command"),
    [
        ((), "onnx", False, ""),
        (("onnxruntime",), "onnx", False, 'pip install "yolokd[export]"'),
        (("pnnx",), "ncnn", False, 'pip install "yolokd[export]"'),
        (("tensorrt",), "engine", False, "pip install tensorrt"),
        (("litert_torch", "ai_edge_litert"), "litert", False, "pip install litert-torch ai-edge-litert"),
        (("nncf",), "openvino", False, ""),
        (("nncf",), "openvino", True, "pip install nncf"),
        (("onnx", "openvino", "ncnn"), "torchscript", False, ""),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], form: str, int8: bool, command: str
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name in absent else object())
    assert missing_packages(form, int8=int8) == command


def test_every_format_of_our_table_is_one_of_ultralytics() -> None:
    assert set(export.REQUIREMENTS) == set(check_formats(list(export.REQUIREMENTS)))


def test_time_is_the_median_after_warming_up() -> None:
    times = iter([900.0, 800.0, 700.0] + [5.0] * 20 + [50.0] * 10)
    assert milliseconds(lambda image, conf: (np.empty((0, 6)), next(times)), Path("a.jpg"), 0.25) == 5.0  # type: ignore[arg-type]
    assert next(times, None) is None  # 3 and 30 runs


def test_table() -> None:
    rows = [
        Exported("pytorch", Path("w/best.pt"), 5_500_000, 113.84, map=0.487),
        Exported("onnx", Path("w/best.onnx"), 10_700_000, 99.96, Agreement(8, 0.9375, 0.1234, 0.00456), 0.486),
        Exported("ncnn", missing='pip install "yolokd[export]"'),
        Exported("mnn", failure="ValueError: no"),
    ]
    lines = export_table(rows).splitlines()
    assert lines[0].split() == [
        "format",
        "MB",
        "ms/image",
        "matched",
        "max",
        "box",
        "px",
        "max",
        "score",
        "mAP50-95",
        "file",
    ]
    assert lines[1].split() == ["pytorch", "5.5", "113.8", "-", "-", "-", "0.487", "best.pt"]
    assert lines[2].split() == ["onnx", "10.7", "100.0", "93.8%", "0.123", "0.0046", "0.486", "best.onnx"]
    assert lines[3].split() == ["ncnn", *"-------"]
    assert lines[5:] == ['ncnn: a package is missing: pip install "yolokd[export]"', "mnn: failed: ValueError: no"]
    assert "mAP" not in export_table(rows[2:])


@pytest.mark.e2e
@pytest.mark.shared
def test_real_exports_detect_the_same(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_SECONDS", 0.5)
    model = tmp_path / "nano.pt"
    shutil.copyfile(shared / "weights" / "yolo11n_from_int8.pt", model)
    rows = export_model(model, ["onnx", "openvino", "torchscript", "ncnn"])
    assert rows[0].milliseconds
    for row in rows[1:]:
        if row.missing:  # this environment has no such package: told, and nothing installed
            continue
        assert row.failure == ""
        assert row.path is not None
        assert row.path.exists()
        assert 9e6 < row.size < 13e6  # float32: twice the half-precision checkpoint
        assert row.milliseconds
        assert row.agreement is not None
        assert row.agreement.boxes == 8  # 5 in one photograph, 3 in the other
        assert row.agreement.matched == 1.0
        exact = row.format != "openvino"  # bfloat16 on processors that have it
        assert row.agreement.box < (0.05 if exact else 8)
        assert row.agreement.score < (0.001 if exact else 0.05)


@pytest.mark.e2e
def test_map_of_the_exported_file(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    model = tmp_path / "student.pt"
    shutil.copyfile(toy_student, model)
    rows = export_model(model, ["torchscript"], imgsz=96, data=toy_data)
    assert rows[1].failure == ""
    assert rows[1].map == pytest.approx(rows[0].map, abs=1e-3)
    assert rows[1].agreement is not None
    assert rows[1].agreement.boxes > 0  # untrained: compared at the low confidence
