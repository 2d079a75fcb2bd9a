"""Whole comparisons on the toy set, killed for real, and what they promise: the same start, the same images."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.conftest import save_detector
from tests.lively import save_lively
from tests.test_trainer import FAST, rows
from yolokd.compat.dataset import check_data, image_files
from yolokd.evaluation import running
from yolokd.evaluation.comparison import Comparison
from yolokd.evaluation.detections import load
from yolokd.evaluation.planning import plan
from yolokd.evaluation.running import run_once
from yolokd.evaluation.splits import write_held_out
from yolokd.trainer import DistillationTrainer

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
ARMS, SEEDS = ("plain", "native", "yolokd"), (0, 1)
# `yolokd compare` with an analysis that only says that it was asked.
COMMAND = """
import sys, types
analysis = types.ModuleType("yolokd.evaluation.analysis")
analysis.analyse = lambda folder, *, robustness: {"verdict": {"text": "analysed"}, "teacher": None, "arms": []}
sys.modules["yolokd.evaluation.analysis"] = analysis
from yolokd.cli import parse
from yolokd.evaluation.compare import compare
print(compare(**parse(sys.argv[1:])))
"""


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher that sees something, and a student of 80 classes, whose head is made anew for the data."""
    folder = tmp_path_factory.mktemp("models")
    teacher = save_lively(folder / "teacher.pt")
    return {"teacher": str(teacher), "student": str(save_detector("yolo11n.yaml", folder / "student.pt", seed=2))}


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def runs_of(folder: Path) -> list[psutil.Process]:
    """The processes that work on runs of a comparison."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "yolokd.evaluation.one" in words and str(folder) in words and process.info["status"] != "zombie":
            found.append(process)
    return found


def until(seen: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not seen():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_in_the_middle_it_goes_on_two_at_once_and_repeats_nothing(
    toy_data: Path, models: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    keys = {**FAST, **models, "data": toy_data, "epochs": 1, "arms": ",".join(ARMS), "seeds": len(SEEDS)}
    words = [f"{key}={value}" for key, value in {**keys, "project": tmp_path, "name": "c"}.items()]
    first = start(words)
    until(lambda: (folder / "plain" / "seed1" / "args.yaml").is_file(), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    gone = time.monotonic() + 10
    while runs_of(folder) and time.monotonic() < gone:
        time.sleep(0.05)
    assert runs_of(folder) == []
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    assert {file.parent.relative_to(folder).as_posix() for file in before} == {
        *("teacher", "plain/seed0", "native/seed0", "yolokd/seed0")
    }
    again = start([f"resume={folder}", "jobs=2"])
    out, _ = again.communicate(timeout=600)
    assert again.returncode == 0, out
    assert "3 of 6 runs are finished" in out
    assert "analysed" in out
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())
    _judge(folder, toy_data)
    whole = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name not in (".lock", "compare.yaml")}
    once_more = start(words)
    out, _ = once_more.communicate(timeout=600)
    assert "6 of 6 runs are finished" in out
    assert {file: file.stat().st_mtime_ns for file in whole} == whole


def _judge(folder: Path, toy_data: Path) -> None:
    """Every run is finished, began like the others of its seed, and was judged on images that it never saw."""
    comparison = Comparison.load(folder)
    results = {(arm, seed): comparison.result(arm, seed) for arm in ARMS for seed in SEEDS}
    for (arm, seed), result in results.items():
        assert result is not None
        assert len(result["start_sha256"]) == 64
        assert result["start_sha256"] == results["plain", seed]["start_sha256"]  # type: ignore[index]
        assert (result["processes"], result["batch"], result["device"]) == (1, 4, "cpu")
        assert result["train_seconds"] > 0
        assert result["peak_memory"] > 10**8
        assert result["parameters"] > 10**6
        assert set(result["scores"]) == {"best", "last"}
        assert [row["epoch"] for row in rows(comparison.run_folder(arm, seed))] == ["1"]
    starts = [results["plain", seed]["start_sha256"] for seed in SEEDS]  # type: ignore[index]
    assert starts[0] != starts[1]  # the head was made anew, by the seed
    data = check_data(comparison.data, "train", "val", "test")
    judging = image_files(data, "test")
    assert len(judging) == 2
    assert not set(judging) & set(image_files(data, "train"))
    assert set(judging) < set(image_files(check_data(toy_data), "train"))
    for file in [*folder.glob("*/*/*.npz"), folder / "teacher" / "best.npz"]:
        images, names = load(file)
        assert [str(image.file) for image in images] == judging
        assert names == {0: "red", 1: "green", 2: "blue"}
    assert len(load(folder / "teacher" / "best.npz")[0][0].boxes) > 0


@pytest.fixture
def comparison(toy_data: Path, models: dict[str, str], tmp_path: Path) -> Comparison:
    """Three arms, two epochs, begun."""
    keys = {**FAST, **models, "data": str(toy_data), "epochs": 2, "project": str(tmp_path), "name": "c", "seeds": 1}
    planned, _ = plan({**keys, "losses": "cls,cwd"})
    planned.folder.mkdir()
    planned.save()
    write_held_out(planned.split, planned.folder)
    return planned


@pytest.mark.parametrize(("name", "processes"), [("plain", 2), ("native", 1), ("yolokd", 2)])
def test_a_run_that_was_cut_off_is_taken_up(
    comparison: Comparison, name: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = DistillationTrainer if name == "yolokd" else DetectionTrainer
    save, arm = maker.save_model, comparison.arm(name)

    def killed(trainer: Any) -> bool:
        save(trainer)
        trainer.run_callbacks("on_model_save")
        raise Killed

    monkeypatch.setattr(maker, "save_model", killed)
    with pytest.raises(Killed):
        run_once(comparison, arm, 0)
    monkeypatch.setattr(maker, "save_model", save)
    folder = comparison.run_folder(name, 0)
    first = running.Record(folder / "training.json")
    assert comparison.result(name, 0) is None
    run_once(comparison, arm, 0)
    result = comparison.result(name, 0)
    assert result is not None
    assert result["processes"] == processes
    assert result["start_sha256"] == first.start_sha256
    assert (result["train_seconds"] > first.seconds[0]) == (processes == 2) or processes == 1
    assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
    assert all(torch.load(file, weights_only=False)["optimizer"] is None for file in folder.glob("weights/*t.pt"))
    at = (folder / "result.json").stat().st_mtime_ns
    run_once(comparison, arm, 0)
    assert (folder / "result.json").stat().st_mtime_ns == at


def test_every_arm_sees_the_same_images_in_the_same_order(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    preprocess = DetectionTrainer.preprocess_batch

    def overheard(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
        parts = [batch["img"].numpy().tobytes(), batch["bboxes"].numpy().tobytes(), str(batch["im_file"]).encode()]
        seen.append(hashlib.sha256(b"".join(parts)).hexdigest())
        return dict(preprocess(trainer, batch))

    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", overheard)
    batches = {}
    for arm in comparison.arms:
        seen.clear()
        running._train(comparison, arm, 0)
        batches[arm.name] = list(seen)
    assert len(batches["plain"]) == len(set(batches["plain"])) == 4  # two epochs of six images, four a batch
    assert batches["native"] == batches["plain"]
    assert batches["yolokd"] == batches["plain"]
