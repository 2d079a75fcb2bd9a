"""What a run notes, how it goes on after a kill, and how it is judged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tests.evaluation.test_comparison import comparison  # noqa: F401
from yolokd.compat.native import bare_student
from yolokd.compat.validation import ImageResult, Validation
from yolokd.evaluation import running
from yolokd.evaluation.arms import Arm
from yolokd.evaluation.comparison import Comparison
from yolokd.evaluation.detections import load
from yolokd.evaluation.running import Record, judge, left_of, peak_memory, weights_sha256

PLAIN, NATIVE = Arm("plain", "plain", "plain"), Arm("native", "native", "native")


class Wrapper(nn.Module):
    """As Ultralytics' DistillationModel holds its student."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student_model = student
        self.projector = nn.Conv2d(3, 4, 1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_equal_weights_have_equal_hashes_however_they_are_wrapped() -> None:
    first, again, other = net(), net(), net(1)
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert weights_sha256(bare_student(Wrapper(again))) == weights_sha256(first)
    assert weights_sha256(again.to(memory_format=torch.channels_last)) == weights_sha256(first)
    assert weights_sha256(net().half()) != weights_sha256(first)
    again[1].num_batches_tracked += 1  # type: ignore[operator]
    assert weights_sha256(again) != weights_sha256(first)


def trainer(model: nn.Module, batch: int = 4) -> Any:
    return SimpleNamespace(model=model, device=torch.device("cpu"), batch_size=batch)


def test_a_second_process_adds_its_seconds_and_keeps_the_first_weights(tmp_path: Path) -> None:
    first = Record(tmp_path / "training.json")
    first.begin()
    first.started(trainer(net()))
    kept = json.loads((tmp_path / "training.json").read_text())
    assert set(kept) == {"start_sha256", "seconds", "peak_memory", "device", "batch"}
    second = Record(tmp_path / "training.json")  # the first one was killed
    second.begin()
    second.started(trainer(net(1), batch=2))
    second.update(trainer(net(1), batch=2))
    assert second.start_sha256 == first.start_sha256 == weights_sha256(net())
    assert second.seconds[:1] == kept["seconds"]
    assert len(second.seconds) == 2
    assert (second.batch, second.device) == (2, "cpu")
    assert second.peak_memory >= first.peak_memory > 2**20


def test_memory_is_in_bytes() -> None:
    now = psutil.Process().memory_info().rss
    assert now <= peak_memory(torch.device("cpu")) < 20 * now


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    half = {"epoch": 0, "optimizer": {}, "best_fitness": 0.5, "train_args": {"epochs": 3}, "model": None}
    torch.save({**half, **content}, folder / "weights" / f"{name}.pt")


def test_a_run_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert left_of(PLAIN, tmp_path, False) == {}


def test_a_plain_run_goes_on_where_both_checkpoints_agree(tmp_path: Path) -> None:
    write(tmp_path, "last")
    write(tmp_path, "best")
    (tmp_path / "results.csv").write_text("epoch,time\n1,5\n2,9\n3,")  # the second epoch was never saved
    last = str(tmp_path / "weights" / "last.pt")
    assert left_of(PLAIN, tmp_path, False) == {"model": last, "resume": last}
    assert (tmp_path / "results.csv").read_text() == "epoch,time\n1,5\n"


@pytest.mark.parametrize("case", ["torn last", "torn best", "no best", "older best", "empty last"])
def test_a_plain_run_begins_again_where_they_do_not(tmp_path: Path, case: str) -> None:
    write(tmp_path, "last")
    write(tmp_path, "best", **({"best_fitness": 0.4} if case == "older best" else {}))
    what, name = case.split()
    file = tmp_path / "weights" / f"{name}.pt"
    if what == "torn":
        file.write_bytes(file.read_bytes()[:-200])
    elif what == "no":
        file.unlink()
    elif what == "empty":
        file.write_bytes(b"")
    assert left_of(PLAIN, tmp_path, False) == {}


def test_a_native_run_begins_again_until_it_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "last")
    write(tmp_path, "best")
    assert left_of(NATIVE, tmp_path, False) == {}
    write(tmp_path, "last", optimizer=None, epoch=-1)
    seen: list[Path] = []
    monkeypatch.setattr(running, "resume_arguments", lambda last, trust: seen.append(last))
    assert left_of(NATIVE, tmp_path, False) is None
    assert seen == [tmp_path / "weights" / "last.pt"]


def image(name: str) -> ImageResult:
    box, none = np.array([[1.0, 2.0, 30.0, 40.0]]), np.zeros(1, np.int64)
    return ImageResult(Path(name), 50, 60, box, np.array([0.9]), none, box, none)


def test_all_models_are_judged_alike(
    comparison: Comparison,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def validate(model: Path, data: str, **how: Any) -> Validation:
        asked.update(how, model=model, data=data)
        return Validation(names={0: "a"}, images=[image("b.jpg"), image("a.jpg")])

    monkeypatch.setattr(running, "validate", validate)
    comparison.settings |= {"imgsz": 64, "batch": 2, "device": "cpu", "classes": [0], "mosaic": 0.0}
    judge(comparison, tmp_path / "x.pt", tmp_path / "best.npz")
    assert asked == {
        **{"imgsz": 64, "batch": 2, "device": "cpu", "classes": [0], "split": "test", "trust": False},
        "model": tmp_path / "x.pt",
        "data": str(tmp_path / "data.yaml"),
    }
    images, names = load(tmp_path / "best.npz")
    assert [str(one.file) for one in images] == ["a.jpg", "b.jpg"]  # whatever order the validator had
    assert names == {0: "a"}


def test_the_teacher_is_judged_once(
    comparison: Comparison,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    tools: list[str] = []
    scored = running.coco_scores

    def validate(model: Path, data: str, **how: Any) -> Validation:
        calls.append((model, how["class_map"], how["imgsz"]))
        return Validation(names={0: "a"}, images=[image("a.jpg")], map=0.9, unknown=("b",))

    def scores(data: Any, *, backend: str) -> Any:
        tools.append(backend)
        return scored(data)

    monkeypatch.setattr(running, "validate", validate)
    monkeypatch.setattr(running, "coco_scores", scores)
    comparison.settings["imgsz"], comparison.backend = 64, "faster-coco-eval"
    # As it teaches.
    keys = {"class_map": "puppy:dog", "teacher_imgsz": 128}
    comparison.arms = [Arm("plain", "plain", "plain"), Arm("yolokd", "yolokd", "yolokd", keys)]
    comparison.judged = str(tmp_path / "t.pt")
    (tmp_path / "t.pt").write_text("t")
    for _ in range(2):
        running.judge_teacher(comparison)
    assert calls == [(tmp_path / "t.pt", {"puppy": "dog"}, 128)]
    assert tools == ["faster-coco-eval"]
    result = comparison.result("teacher", 0)
    assert result is not None
    assert result["scores"]["best"]["ap"] == pytest.approx(1.0)
    assert result["scores"]["best"]["ultralytics"] == {"map": 0.9, "map50": 0.0}
    assert result["imgsz"] == 128
    assert (result["unknown"], result["train_seconds"], result["size"]) == (["b"], None, 1)
