from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel

from tests.conftest import NAMES
from yolokd.compat import checkpoint
from yolokd.compat.checkpoint import (
    build_student,
    find_checkpoint,
    fit_to_data,
    head_info,
    load_detector,
    read_checkpoint,
    restricted_loading,
    sha256,
)
from yolokd.errors import UserError


def refusal(call: Callable[[], Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


class Marks:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.file}'",)


def test_a_detector_is_loaded_ready_to_use(toy_teacher: Path) -> None:
    model = load_detector(toy_teacher, role="teacher")
    assert type(model) is DetectionModel
    assert not model.training
    assert not model.is_fused()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.names == NAMES


def test_head_info_of_each_kind(toy_student: Path) -> None:
    info = head_info(load_detector(toy_student, role="student"))
    assert (info.strides, info.widths, info.reg_max, info.end2end) == ((8, 16, 32), (64, 128, 256), 16, False)
    assert info.names == NAMES
    assert all(type(stride) is int for stride in info.strides)
    assert info.hidden == (((64,) * 3, (64,) * 3),) * 2  # three classes: Ultralytics' class branch is 64 wide then
    p2 = head_info(build_student("yolov8n-p2.yaml"))
    assert p2.strides == (4, 8, 16, 32)
    one2one = head_info(build_student("yolo26n.yaml"))
    assert (one2one.reg_max, one2one.end2end) == (1, True)
    assert head_info(build_student("yolov10n.yaml")).end2end


def test_a_segmenter_teaches_but_does_not_learn(tmp_path: Path) -> None:
    YOLO("yolo11n-seg.yaml").save(tmp_path / "seg.pt")
    assert head_info(load_detector(tmp_path / "seg.pt", role="teacher")).widths == (64, 128, 256)
    assert "a segmenter" in refusal(lambda: load_detector(tmp_path / "seg.pt", role="student")).problem


@pytest.mark.parametrize("how", ["alone", "beside a model", "old format"])
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, toy_student: Path, how: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"model": Marks(mark)}
    if how == "beside a model":
        content = {**torch.load(toy_student, weights_only=False), "extra": Marks(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=how != "old format")
    for call in (lambda: load_detector(file, role="teacher"), lambda: read_checkpoint(file)):
        error = refusal(call)
        assert f"{os.system.__module__}.system" in error.problem
        assert "ultralytics" not in error.problem  # what Ultralytics allows is not accused
        assert "trust=True" in error.remedy
    assert not mark.exists()


def test_a_bare_pickle_is_not_run_either(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps({"model": Marks(mark)}))
    refusal(lambda: load_detector(file, role="teacher"))
    assert not mark.exists()


def test_trust_loads_what_is_foreign(tmp_path: Path, toy_student: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "mine.pt"
    torch.save({**torch.load(toy_student, weights_only=False), "extra": Marks(mark)}, file)
    assert load_detector(file, role="student", trust=True).names == NAMES
    assert mark.exists()


def test_old_torch_is_refused_because_it_does_not_protect(toy_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAFE_LOAD_SUPPORTED", False)
    assert "2.6" in refusal(lambda: load_detector(toy_student, role="student")).remedy
    assert load_detector(toy_student, role="student", trust=True).names == NAMES


def test_restricted_loading_holds_for_ultralytics_own_loads(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"model": Marks(mark)}, file)
    with restricted_loading(), pytest.raises(TypeError):
        YOLO(file)
    assert not mark.exists()
    assert not tasks.SAFE_LOAD
    with restricted_loading(trust=True):
        assert not tasks.SAFE_LOAD


def test_a_published_name_offline_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("yolo11x.pt", "yolo11x"):
        error = refusal(lambda name=name: find_checkpoint(name, role="teacher"))
        assert "teacher=yolo11x.pt" in error.problem
        assert str(tmp_path) in error.remedy
    assert "no such file" in refusal(lambda: find_checkpoint("yolo11xx.pt", role="teacher")).problem


def test_a_published_name_online_is_fetched_by_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ultralytics.utils.ONLINE", True)

    def fetch(name: str) -> str:
        (tmp_path / name).write_bytes(b"weights")
        return name

    monkeypatch.setattr(checkpoint.ultralytics_downloads, "attempt_download_asset", fetch)
    assert find_checkpoint("yolo11x.pt", role="teacher") == tmp_path / "yolo11x.pt"

    def fail(name: str) -> str:
        raise ConnectionError("Download failure\nsecond line")

    monkeypatch.setattr(checkpoint.ultralytics_downloads, "attempt_download_asset", fail)
    assert (
        "could not be fetched: Download failure"
        in refusal(lambda: find_checkpoint("yolo11l.pt", role="teacher")).problem
    )


def test_only_checkpoints_teach() -> None:
    assert "without weights" in refusal(lambda: load_detector("yolo11x.yaml", role="teacher")).problem
    assert "not a .pt file" in refusal(lambda: load_detector("yolo11x.onnx", role="teacher")).problem


def test_a_student_takes_the_classes_of_the_data(toy_student: Path) -> None:
    own = load_detector(toy_student, role="student")
    same = build_student(toy_student, names={0: "a", 1: "b", 2: "c"})
    assert same.names == {0: "a", 1: "b", 2: "c"}
    two = build_student(toy_student, names={0: "a", 1: "b"})
    assert two.model[-1].nc == 2
    assert torch.equal(two.model[0].conv.weight, own.model[0].conv.weight)  # the backbone is kept
    fresh = build_student("yolo11n.yaml", names={0: "a"}, channels=1)
    assert fresh.model[-1].nc == 1
    assert fresh.model[0].conv.in_channels == 1
    assert fit_to_data(fresh, {0: "a"}, 1) is fresh


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such model YAML"),
        ("nc: [3\n", "is not a model YAML"),
        ("nc: 3\nbackbone: [[-1, 1, Conf, [64, 3, 2]]]\nhead: [[[-1], 1, Detect, [nc]]]\n", "KeyError: 'Conf'"),
        ("nc: 3\n", "does not build"),
    ],
)
def test_a_broken_model_yaml_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    assert said in refusal(lambda: build_student(file)).problem


def test_a_yaml_of_another_task_is_refused() -> None:
    assert "a segmenter" in refusal(lambda: build_student("yolo11n-seg.yaml")).problem
    assert "a classifier" in refusal(lambda: build_student("yolo11n-cls.yaml")).problem


def test_read_checkpoint_gives_the_training_state(tmp_path: Path, toy_student: Path) -> None:
    content = {**torch.load(toy_student, weights_only=False), "epoch": 3, "optimizer": {"state": {}}}
    torch.save(copy.deepcopy(content), tmp_path / "last.pt")
    read = read_checkpoint(tmp_path / "last.pt")
    assert read["epoch"] == 3
    assert read["optimizer"] == {"state": {}}


def test_sha256(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
