from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils.patches import torch_load

from yolokd import demo
from yolokd.compat.checkpoint import head_info, load_detector
from yolokd.data.shapes import IMAGE_SIZE, NAMES
from yolokd.errors import UserError
from yolokd.evaluation.agreement import Agreement
from yolokd.evaluation.coco import CocoScores, Evaluation
from yolokd.export import Exported

SCORES = CocoScores(0.5, 0.7, 0.6, None, None, None)


def row(name: str, score: float, seconds: float | None = 12.0) -> demo.Row:
    scores = Evaluation(name, 60, 500, score, 0.7, SCORES, 2_591_400, 6.5, 5_400_000)
    return demo.Row(name, Path(f"{name}.pt"), scores, seconds)


TEACHER, PLAIN, DISTILLED = row("teacher", 0.8, None), row("plain", 0.4), row("distilled", 0.42)


def test_table_shows_what_was_measured() -> None:
    lines = demo.table((TEACHER, PLAIN, DISTILLED)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["teacher", "plain", "distilled"]
    assert lines[1].split()[1:] == ["0.800", "0.700", "0.500", "2,591,400", "5.4", "shipped"]
    assert lines[3].split()[-1] == "12"


@pytest.mark.parametrize(
    ("score", "words"),
    [(0.42, "gained 2.0 points"), (0.37, "LOST 3.0 points"), (0.4002, "changed nothing")],
)
def test_verdict_is_honest_either_way(score: float, words: str) -> None:
    line = demo.verdict(PLAIN, row("distilled", score), TEACHER)
    assert words in line
    assert f"{score / 0.8:.0%}" in line


def test_verdict_survives_a_teacher_that_finds_nothing() -> None:
    assert "keeps" not in demo.verdict(PLAIN, DISTILLED, row("teacher", 0.0))


def test_boxes_are_drawn_where_they_are() -> None:
    picture = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    large = demo._boxes(picture, np.array([3.0]), np.array([[50.0, 60.0, 70.0, 90.0]]))
    ys, xs = np.nonzero(large[60 * demo._ZOOM + 2 :].any(axis=2))  # below the name
    edges = np.array([xs.min(), xs.max(), ys.max() + 60 * demo._ZOOM + 2])
    assert np.abs(edges - [150, 210, 270]).max() <= 1  # the line is 2 pixels wide


def test_side_by_side_has_a_column_a_model_and_a_line_an_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    YOLO("yolo11n.yaml").save(tmp_path / "random.pt")
    model = replace(PLAIN, checkpoint=tmp_path / "random.pt")
    picture = cv2.imread(str(demo.side_by_side([model, model], 2, tmp_path / "side.png")))
    cell = IMAGE_SIZE * demo._ZOOM
    assert picture.shape == (2 * cell + 28, 3 * cell, 3)
    truth, blank = picture[28 : 28 + cell, :cell], picture[28 : 28 + cell, cell : 2 * cell]
    assert (truth != blank).any(), "the ground truth carries no boxes"


def test_shipped_teacher_is_what_the_page_beside_it_says() -> None:
    page = (demo.TEACHER.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(demo.TEACHER.read_bytes()).hexdigest() in page
    assert demo.TEACHER.stat().st_size < 20e6
    info = head_info(load_detector(demo.TEACHER, role="teacher"))  # loads without running its pickle
    assert tuple(info.names.values()) == NAMES


def test_shipped_teacher_names_no_folder() -> None:
    checkpoint = torch_load(demo.TEACHER, map_location="cpu", weights_only=False)
    assert checkpoint["epoch"] == -1
    assert checkpoint["ema"] is None
    assert not re.findall(rb"/(?:home|root|tmp|work|opt|usr)/|\\Users\\", demo.TEACHER.read_bytes())
    assert not {"data", "project", "save_dir", "model", "name"} & set(checkpoint["train_args"])


def test_a_missing_teacher_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TEACHER", tmp_path / "none.pt")
    with pytest.raises(UserError, match="missing"):
        demo.run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.e2e
def test_the_whole_demo_in_small(tmp_path: Path) -> None:
    result = demo.run_demo(tmp_path / "my demo", epochs=1, images=(8, 4, 4), device="cpu")
    printed = str(result)
    assert demo.table(result.rows) in printed
    assert demo.verdict(result.rows[1], result.rows[2], result.rows[0]) in printed
    teacher, plain, distilled = (r.scores for r in result.rows)
    assert teacher.map > 0.5
    assert teacher.map > plain.map
    assert teacher.parameters > distilled.parameters == plain.parameters
    assert result.exported.format == "onnx"
    assert result.exported.path.stat().st_size == result.exported.size > 1e6
    assert result.exported.agreement.matched > 0.5  # an untrained nano's boxes are ties
    assert str(result.exported.path) in printed
    assert result.note == ""
    assert cv2.imread(str(result.pictures)).shape[1] == 4 * IMAGE_SIZE * demo._ZOOM
    columns = (result.folder / "distilled" / "results.csv").read_text().splitlines()[0]
    assert "train/kd_cls_loss" in columns
    assert "kd_" not in (result.folder / "plain" / "results.csv").read_text().splitlines()[0]


def fake_export(monkeypatch: pytest.MonkeyPatch, onnx: Exported) -> None:
    script = Exported("torchscript", Path("best.torchscript"), 10_500_000, 5.0, Agreement(9, 1.0, 0.0, 0.0), 0.4)
    results = {"onnx": onnx, "torchscript": script}
    monkeypatch.setattr(demo, "export_model", lambda model, formats, **kw: [script, results[formats[0]]])


@pytest.mark.parametrize(
    ("onnx", "reason"),
    [
        (Exported("onnx", missing='pip install "yolokd[export]"'), 'pip install "yolokd[export]"'),
        (Exported("onnx", Path("best.onnx"), failure="RuntimeError: no such operator"), "no such operator"),
    ],
)
def test_without_onnx_the_demo_exports_torchscript_and_says_why(
    monkeypatch: pytest.MonkeyPatch, onnx: Exported, reason: str
) -> None:
    fake_export(monkeypatch, onnx)
    exported, note = demo._export(Path("best.pt"), Path("shapes.yaml"))
    assert exported.format == "torchscript"
    assert reason in note
    assert "100.0% of the boxes match" in demo.exported_line(exported)
    assert reason in demo.exported_line(onnx)
