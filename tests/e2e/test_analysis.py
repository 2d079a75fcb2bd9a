"""A comparison from its command to its report, with nothing made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import save_detector
from tests.lively import save_lively
from tests.test_trainer import FAST
from yolokd.evaluation.analysis import analyse
from yolokd.evaluation.compare import compare
from yolokd.evaluation.report.page import write_report

pytestmark = pytest.mark.e2e


def test_from_the_command_to_the_page(toy_data: Path, tmp_path: Path) -> None:
    models = {
        "teacher": str(save_lively(tmp_path / "t.pt")),
        "student": str(save_detector("yolo11n.yaml", tmp_path / "n.pt")),
    }
    keys = {**FAST, **models, "data": str(toy_data), "epochs": 1, "arms": "plain,yolokd", "seeds": 1}
    done = compare(**keys, project=str(tmp_path), name="c")
    assert done.failed == ()
    report, folder = dict(done.report), tmp_path / "c"
    plain, ours = report["arms"]
    assert ours["same_start"] is True
    assert ours["to_plain"]["per_seed"] == [ours["ap"]["mean"] - plain["ap"]["mean"]]
    assert report["verdict"]["text"].startswith("1 seed: too few for a verdict")
    speed = report["speed"]
    if "plain" in speed:  # ONNX is there
        assert speed["plain"] == speed["yolokd"]
        assert all(speed[name]["onnx_ms_median"] > 0 for name in ("plain", "teacher"))
        assert (folder / "analysis" / "plain.onnx").is_file()
    assert set(report["calibration"]) == {"plain", "yolokd", "teacher"}
    assert report["curves"]["yolokd"]["epoch"] == [1]
    assert set(report["terms"]) == {"yolokd"}
    robust = report["robustness"]
    assert (set(robust["arms"]), robust["seeds"]) == ({"plain", "yolokd"}, [0])
    assert robust["arms"]["plain"]["clean"] == pytest.approx(plain["ap"]["mean"], abs=1e-6)
    assert len(report["examples"]) == 1  # of the two images that judge, one is empty
    assert all((folder / path).is_file() for entry in report["examples"] for path in entry["images"].values())
    before = {file: file.stat().st_mtime_ns for file in (folder / "analysis").rglob("*")}
    assert analyse(folder) == report
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "too few for a verdict" in write_report(folder).read_text(encoding="utf-8")
