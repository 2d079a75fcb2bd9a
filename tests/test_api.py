"""The functions that the command line and Python both call, on toy models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lively import save_lively, save_tiny_detr
from tests.test_trainer import FAST, rows
from yolokd import api, runs
from yolokd.api import Run, distill
from yolokd.errors import UserError


@pytest.fixture(scope="module")
def run(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch, losses given as a dict, paths given as paths."""
    args = {**FAST, "epochs": 1, "project": tmp_path_factory.mktemp("api"), "losses": {"cls": 2.0}}
    return distill(toy_student, toy_teacher, data=toy_data, schedule="constant", warmup_epochs=0, **args)


def test_distill_says_where_the_run_is_and_what_it_scored(run: Run) -> None:
    assert run.best == run.save_dir / "weights" / "best.pt"
    assert run.best.is_file()
    assert run.last.is_file()
    row = rows(run.save_dir)[0]
    assert float(row["train/kd_cls_loss"]) > 0
    for name in ("metrics/mAP50-95(B)", "metrics/mAP50(B)", "metrics/recall(B)"):
        assert run.metrics[name] == pytest.approx(float(row[name]), abs=1e-5)


def test_distill_resumed_after_its_end_trains_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a trainer was built")

    monkeypatch.setattr(runs, "DistillationTrainer", no_training)
    assert distill(resume=run.last) == run
    assert distill(resume=str(run.save_dir)) == run


def test_distill_hands_every_key_to_the_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    class Trainer:
        save_dir = tmp_path

        def __init__(self, overrides: dict[str, Any]) -> None:
            given.update(overrides)

        def train(self) -> None:
            pass

    monkeypatch.setattr(runs, "DistillationTrainer", Trainer)
    empty = distill(Path("s.pt"), "t.pt", data="d.yaml", losses={"cwd": 1}, resume=False, **{"cwd.temperature": 2})
    assert empty == Run(tmp_path, {})
    expected = {"student": "s.pt", "teacher": "t.pt", "data": "d.yaml", "losses": {"cwd": 1}, "cwd.temperature": 2}
    assert given == {**expected, "mode": "train"}


def test_distill_lays_what_is_typed_over_a_run_that_begins_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "distill.yaml").write_text("teacher: t.pt\nstudent: s.pt\ndata: d.yaml\nepochs: 9\n")
    given: dict[str, Any] = {}

    class Trainer:
        save_dir = tmp_path

        def __init__(self, overrides: dict[str, Any]) -> None:
            given.update(overrides)

        def train(self) -> None:
            pass

    monkeypatch.setattr(runs, "DistillationTrainer", Trainer)
    distill(resume=tmp_path, teacher="moved.pt", exist_ok=False)
    assert (given["teacher"], given["student"], given["epochs"]) == ("moved.pt", "s.pt", 9)
    assert (given["save_dir"], given["exist_ok"]) == (str(tmp_path.resolve()), True)
    assert "resume" not in given


def test_check_refuses_what_it_could_only_ignore() -> None:
    with pytest.raises(UserError, match="losses=none leaves nothing to check"):
        api.check("t.pt", "s.pt", "d.yaml", losses="none")


@pytest.mark.e2e
def test_evaluate_sets_two_models_side_by_side(run: Run, toy_data: Path, toy_teacher: Path) -> None:
    table = api.evaluate(run.best, toy_data, toy_teacher, imgsz=64, batch=4, device="cpu")
    assert "mAP50-95" in table
    assert "GFLOPs" in table
    alone = api.evaluate(run.best, toy_data, imgsz=64, batch=4, device="cpu")
    assert len(alone) < len(table)


def test_another_tool_gives_the_same_table(toy_student: Path, toy_data: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    how: dict[str, Any] = {"imgsz": 64, "batch": 4, "device": "cpu"}
    theirs = api.evaluate(toy_student, toy_data, backend="faster-coco-eval", **how)
    assert theirs == api.evaluate(toy_student, toy_data, **how)


@pytest.mark.e2e
def test_export_measures_each_file_and_accepts_words_or_a_list(run: Run, toy_data: Path) -> None:
    table, exported = api.export(run.best, "torchscript", data=toy_data, imgsz=64)
    assert [row.format for row in exported] == ["pytorch", "torchscript"]
    assert "torchscript" in table
    assert run.best.with_suffix(".torchscript").is_file()
    _, again = api.export(run.best, ["torchscript"], data=toy_data, imgsz=64)
    assert [row.format for row in again] == ["pytorch", "torchscript"]


@pytest.mark.e2e
def test_check_says_what_pairs_and_who_is_better(toy_student: Path, toy_teacher: Path, toy_data: Path) -> None:
    text = api.check(toy_teacher, toy_student, toy_data, imgsz=64, batch=4, device="cpu")
    assert "3 of 3" in text
    assert "mAP" in text


def test_cache_says_what_it_stored_and_keeps_it(toy_data: Path, tmp_path: Path) -> None:
    teacher = save_lively(tmp_path / "t.pt")
    said = api.cache(teacher, toy_data, tmp_path / "cache", imgsz=64, device="cpu", workers=2)
    (file,) = (tmp_path / "cache").glob("*.soft")
    assert said.startswith(f"{file}: ")
    assert "detections of 8 images and their mirror images" in said
    before = file.stat().st_mtime_ns
    assert api.cache(teacher, toy_data, tmp_path / "cache", imgsz=64, device="cpu") == said
    assert file.stat().st_mtime_ns == before
    api.cache(teacher, toy_data, tmp_path / "cache", teacher_imgsz=96, imgsz=64, device="cpu")
    assert len(list((tmp_path / "cache").glob("*.soft"))) == 2


@pytest.mark.e2e
def test_check_of_a_teacher_whose_accuracy_is_not_measured(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    detr = save_tiny_detr(tmp_path / "detr.pt")
    text = api.check(detr, toy_student, toy_data, imgsz=64, batch=4, device="cpu")
    assert "3 of 3" in text
    assert "student mAP50-95" in text
    assert "teacher mAP50-95" not in text


def test_cache_reads_what_it_is_told_of_an_exported_teacher_and_of_the_batch(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(api, "fill_from", lambda config, theirs, side, batch: asked.extend([config, batch]))
    with pytest.raises(AttributeError):  # nothing was stored
        api.cache("x.onnx", toy_data, tmp_path, batch=4, teacher_names="red,green", teacher_boxes="xyxy", trust=True)
    config, batch = asked
    assert (config.teacher_names, config.teacher_boxes, config.trust) == (("red", "green"), "xyxy", True)
    assert batch == 4
    with pytest.raises(UserError, match="conf, epochs: `yolokd cache` reads no such keys"):
        api.cache("x.onnx", toy_data, tmp_path, conf=0.5, epochs=3)


def test_cache_refuses_images_of_other_channels_before_it_asks(toy_data: Path, tmp_path: Path) -> None:
    content = {**yaml.safe_load(toy_data.read_text()), "channels": 1}
    (tmp_path / "grey.yaml").write_text(yaml.safe_dump(content))
    teacher = save_lively(tmp_path / "t.pt")
    with pytest.raises(UserError, match="takes images of 3 channels, the data has 1"):
        api.cache(teacher, tmp_path / "grey.yaml", tmp_path / "cache", imgsz=64, device="cpu")
    assert not (tmp_path / "cache").exists()
