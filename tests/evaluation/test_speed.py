"""Timing by turns, with made-up clocks and meters; a real, tiny ONNX file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolokd.evaluation import speed as module
from yolokd.evaluation.energy import Meter
from yolokd.evaluation.speed import by_turns, speed


class Clock:
    """Time and energy that pass only while something runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.energy = 0
        self.order: list[str] = []

    def run(self, name: str, seconds: float, joules: float = 0.0) -> Callable[[], None]:
        def once() -> None:
            self.now += seconds
            self.energy += round(1e6 * joules)
            self.order.append(name)

        return once

    @property
    def meter(self) -> Meter:
        return Meter(lambda: [self.energy], [10**12], "made up")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "perf_counter", lambda: made.now)
    return made


def test_blocks_change_between_the_models(clock: Clock) -> None:
    timed = by_turns({"a": clock.run("a", 0.125), "b": clock.run("b", 0.25)}, None)
    # A block: one that is not timed, then half a second, at least 5 unless they take a second.
    assert clock.order == (["a"] * 6 + ["b"] * 5) * 10
    assert timed == {"a": ([0.125] * 50, None), "b": ([0.25] * 40, None)}


def test_a_slow_model_and_a_fast_one(clock: Clock) -> None:
    timed = by_turns({"slow": clock.run("slow", 3.0), "fast": clock.run("fast", 2**-7)}, None)
    assert len(timed["slow"][0]) == 10
    assert len(timed["fast"][0]) == 640


def test_energy_is_that_of_the_timed_runs_alone(clock: Clock) -> None:
    runs = {"a": clock.run("a", 0.125, joules=2.0), "b": clock.run("b", 0.125, joules=0.5)}
    timed = by_turns(runs, clock.meter)
    assert timed["a"][1] == pytest.approx(2.0)
    assert timed["b"][1] == pytest.approx(0.5)
    assert by_turns({"a": clock.run("a", 0.125)}, clock.meter)["a"][1] is None  # it stands still


def test_a_row() -> None:
    row = module._row([0.010] * 18 + [0.020, 0.100], 1.5)
    assert row == {
        "onnx_ms_median": pytest.approx(10.0),
        "onnx_ms_p95": pytest.approx(24.0),  # between the 19th and 20th of 20: .05 of the way
        "images_per_second": pytest.approx(20 / 0.3),
        "energy_j_per_image": 1.5,
    }


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """An exporter that writes a network of one layer; it fails for a file with the word broken."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    calls: list[dict[str, Any]] = []

    def export(model: Path, form: str, **arguments: Any) -> Path:
        calls.append({"model": model, "form": form, **arguments})
        if "broken" in model.read_text():
            raise RuntimeError("it does not export\nmore")
        shape = (1, 3, arguments["imgsz"], arguments["imgsz"])
        ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        file = model.with_suffix(".onnx")
        onnx.save(made, str(file))
        return file

    monkeypatch.setattr(module, "export_file", export)
    monkeypatch.setattr(module, "find_meter", lambda gpu: (None, "nobody counts"))
    monkeypatch.setattr(module, "BLOCK", 0.0)
    monkeypatch.setattr(module, "available_cores", lambda: [0, 1])
    return calls


def test_one_file_for_all_of_one_architecture(tmp_path: Path, exporter: list[dict[str, Any]]) -> None:
    (tmp_path / "best.pt").write_text("weights")
    store = tmp_path / "analysis"
    store.mkdir()
    models = {("plain", "yolokd"): tmp_path / "best.pt", ("teacher",): tmp_path / "gone.pt"}
    measured = speed(models, store, imgsz=32, machine="a processor", trust=True)
    assert list(measured) == ["plain", "yolokd", "note"]
    assert measured["plain"] == measured["yolokd"]
    assert 0 < measured["plain"]["onnx_ms_median"] <= measured["plain"]["onnx_ms_p95"]
    assert measured["plain"]["energy_j_per_image"] is None
    assert measured["plain"]["energy_note"] == "nobody counts"
    assert "on 2 threads of a processor; batch 1, 32 px" in measured["note"]
    assert "plain, yolokd have the same architecture: the file of plain was timed for all" in measured["note"]
    assert "teacher could not be measured" in measured["note"]
    (call,) = exporter
    assert (call["form"], call["imgsz"], call["device"], call["trust"]) == ("onnx", 32, "cpu", True)
    assert call["model"].name == "plain.pt"  # a copy: nothing is written beside best.pt
    assert [file.name for file in store.iterdir()] == ["plain.onnx"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["analysis", "best.pt"]


def test_a_model_that_does_not_export_stops_no_other(tmp_path: Path, exporter: list[dict[str, Any]]) -> None:
    for name in ("broken", "whole"):
        (tmp_path / f"{name}.pt").write_text(name)
    models = {("a", "b"): tmp_path / "broken.pt", ("c",): tmp_path / "whole.pt"}
    measured = speed(models, tmp_path, imgsz=32, machine="m")
    assert list(measured) == ["c", "note"]
    assert measured["note"].endswith("; a could not be measured: it does not export")
    assert list(speed({("a",): tmp_path / "broken.pt"}, tmp_path, imgsz=32, machine="m")) == ["note"]


def test_a_runtime_that_cannot_be_loaded(
    tmp_path: Path, exporter: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "missing_packages", lambda form: "")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "a.pt").write_text("a")
    assert "a could not be measured" in speed({("a",): tmp_path / "a.pt"}, tmp_path, imgsz=32, machine="m")["note"]
    assert module.version_of_runtime() == ""


def test_without_the_packages_there_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "missing_packages", lambda form: 'pip install "yolokd[export]"')
    expected = {"note": 'not measured: ONNX needs `pip install "yolokd[export]"`'}
    assert speed({("a",): tmp_path / "a.pt"}, tmp_path, imgsz=32, machine="m") == expected
    assert module.version_of_runtime() == ""
