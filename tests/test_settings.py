from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yolokd import settings
from yolokd.compat.checkpoint import sha256
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.settings import _ENVIRONMENT, handed_down, settle
from yolokd.sidecar import Sidecar, load_sidecar

ROOT = Path(__file__).parents[1]
NEW: dict[str, Any] = {
    "teacher": "t.pt",
    "losses": "cls,mgd",
    "mgd.ratio": 0.5,
    "balance": 0.1,
    "guard": "off",
    "refine_epochs": 2,
    "taps": "4:4,6:6,10:9",
    "teacher_imgsz": 1280,
    "teacher_every": 3,
    "teacher_compile": True,
    "kd_start": 1,
}


def in_the_environment() -> dict[str, Any]:
    return dict(json.loads(os.environ[_ENVIRONMENT]))


def test_settings_stand_in_the_environment_only_while_workers_are_spawned() -> None:
    config = build_config(NEW)
    assert _ENVIRONMENT not in os.environ
    with handed_down(config, Sidecar({}, "abc")):
        handed = in_the_environment()
    assert handed["sha256"] == "abc"
    assert handed["config"]["taps"] == [[4, 4], [6, 6], [10, 9]]
    assert _ENVIRONMENT not in os.environ


def test_settings_leave_the_environment_after_a_failure_too() -> None:
    def spawn() -> None:
        with handed_down(build_config(NEW), Sidecar({}, "abc")):
            assert _ENVIRONMENT in os.environ
            raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        spawn()
    assert _ENVIRONMENT not in os.environ


@pytest.mark.parametrize("ours", [NEW, {"teacher": "t.pt"}, {"losses": "none"}])
def test_a_worker_reads_exactly_the_settings_of_its_parent(ours: dict[str, Any]) -> None:
    config = build_config(ours)
    theirs = {"epochs": 3, "model": "s.pt"}
    with handed_down(config, Sidecar(config.to_dict(), "abc")):
        read, sidecar, rest = settle(theirs, worker=True)
    assert read == config
    assert (dict(sidecar.config), sidecar.teacher_sha256) == (json.loads(json.dumps(config.to_dict())), "abc")
    assert rest == theirs


def test_a_process_of_its_own_reads_them_from_the_environment() -> None:
    config = build_config(NEW)
    code = "from yolokd.settings import settle; print(settle({}, worker=True)[0].to_yaml())"
    with handed_down(config, Sidecar({}, "")):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == config.to_yaml().strip()


def test_only_a_worker_looks_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with handed_down(build_config(NEW), Sidecar({}, "")), pytest.raises(UserError, match="teacher= is missing"):
        settle({"losses": "cls"}, worker=False)
    with pytest.raises(UserError, match="teacher= is missing"):  # a worker that no parent of ours began
        settle({"losses": "cls"}, worker=True)


def test_what_is_asked_for_anew(toy_teacher: Path, toy_student: Path, toy_data: Path, here: Path) -> None:
    shutil.copy(toy_teacher, here / "t.pt")
    theirs = {"model": str(toy_student), "data": str(toy_data), "imgsz": 64, "device": "cpu", "epochs": 9}
    new = {key: value for key, value in NEW.items() if key != "teacher_imgsz"}
    config, sidecar, rest = settle({**new, **theirs}, worker=False)
    assert config.teacher == str((here / "t.pt").resolve())  # absolute, to be found from another folder
    assert (config.taps, config.balance, config.closing) == (((4, 4), (6, 6), (10, 9)), 0.1, 2)
    assert (dict(sidecar.config), sidecar.teacher_sha256) == (config.to_dict(), sha256(toy_teacher))
    assert rest == theirs


def test_a_plain_run(toy_student: Path, toy_data: Path) -> None:
    theirs = {"model": str(toy_student), "data": str(toy_data), "epochs": 3}
    config, sidecar, rest = settle({"losses": "none", "refine_epochs": 1, **theirs}, worker=False)
    assert config.losses == {}
    assert (dict(sidecar.config), sidecar.teacher_sha256) == (config.to_dict(), "")
    assert rest == theirs


@pytest.mark.parametrize("key", ["kd_close", "refine_epochs"])
@pytest.mark.parametrize(
    ("theirs", "said"), [({"epochs": 3}, "epochs=3: every gain is zero"), ({"time": 0.1}, "with time=0.1 nobody knows")]
)
def test_the_end_is_checked_before_any_file_is_read(
    key: str, theirs: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "preflight", lambda *args: pytest.fail("files were read"))
    with pytest.raises(UserError, match=said):
        settle({"teacher": "nowhere.pt", key: 3, **theirs}, worker=False)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The weights of a run that has begun, and its teacher beside them."""
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"a teacher")
    config = build_config({**NEW, "teacher": str(teacher)})
    Sidecar(config.to_dict(), sha256(teacher), {3: {}}).save(tmp_path / "weights")
    return tmp_path / "weights"


def test_a_resumed_run_goes_on_with_its_own_settings(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(settings.LOGGER, "warning", said.append)
    asked = {"resume": str(begun / "last.pt"), "losses": "cls", "balance": "off", "teacher_precision": "fp32"}
    config, sidecar, theirs = settle(asked, worker=False)
    assert config == build_config({**NEW, "teacher": str(begun.parent / "teacher.pt"), "teacher_precision": "fp32"})
    assert sidecar.records == load_sidecar(begun).records
    assert dict(sidecar.config) == config.to_dict()
    assert theirs == {"resume": str(begun / "last.pt")}
    assert said == ["Resume ignores balance, losses: the run goes on with the settings it began with."]


def test_the_teacher_may_have_moved_but_not_changed(begun: Path) -> None:
    teacher = begun.parent / "teacher.pt"
    moved = teacher.rename(begun.parent / "moved.pt")
    asked = {"resume": str(begun / "last.pt")}
    with pytest.raises(UserError, match="no such file"):
        settle(asked, worker=False)
    config, sidecar, _ = settle({**asked, "teacher": str(moved)}, worker=False)
    assert config.teacher == sidecar.config["teacher"] == str(moved)
    moved.write_bytes(b"another teacher")
    with pytest.raises(UserError, match="SHA-256 differs"):
        settle({**asked, "teacher": str(moved)}, worker=False)


def test_a_resumed_plain_run_needs_no_teacher(tmp_path: Path) -> None:
    config = build_config({"losses": "none", "refine_epochs": 1})
    Sidecar(config.to_dict(), "").save(tmp_path / "weights")
    assert settle({"resume": str(tmp_path / "weights" / "last.pt")}, worker=False)[0] == config


def test_a_plain_run_cannot_be_all_refinement(toy_data: Path, toy_student: Path) -> None:
    keys = {"model": str(toy_student), "data": str(toy_data), "losses": "none", "refine_epochs": 3}
    with pytest.raises(UserError, match="refine_epochs=3 with epochs=3: nothing comes before the refinement"):
        settle({**keys, "epochs": 3}, worker=False)
    assert settle({**keys, "epochs": 4}, worker=False)[0].refine_epochs == 3


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """The weights of a run with three teachers, two of them specialists; the files lie beside them."""
    for name in ("a.pt", "b.pt", "c.pt"):
        (tmp_path / name).write_bytes(name.encode())
    text = f"{tmp_path}/a.pt:red+green,{tmp_path}/b.pt:blue,{tmp_path}/c.pt"
    config = build_config({**NEW, "teacher": text, "teacher_weights": "3,1,0.1"})
    Sidecar(config.to_dict(), settings._fingerprints(text), {3: {}}).save(tmp_path / "weights")
    return tmp_path


def test_several_teachers_are_found_again(several: Path) -> None:
    asked = {"resume": str(several / "weights" / "last.pt")}
    config, sidecar, _ = settle(asked, worker=False)
    assert config.teacher == f"{several}/a.pt:red+green,{several}/b.pt:blue,{several}/c.pt"
    assert config.teacher_weights == (3.0, 1.0, 0.1)
    assert len(sidecar.teacher_sha256.split(",")) == 3
    (several / "b.pt").rename(several / "moved.pt")
    with pytest.raises(UserError, match=r"teacher=.*b\.pt: no such file"):
        settle(asked, worker=False)
    # Where files have moved, their names are enough: each goes on speaking for its classes.
    config = settle({**asked, "teacher": f"{several}/a.pt,{several}/moved.pt,{several}/c.pt"}, worker=False)[0]
    assert config.teacher == f"{several}/a.pt:red+green,{several}/moved.pt:blue,{several}/c.pt"


def test_the_one_of_several_teachers_that_changed_is_named(several: Path) -> None:
    asked = {"resume": str(several / "weights" / "last.pt")}
    (several / "b.pt").write_bytes(b"another")
    with pytest.raises(UserError) as caught:
        settle(asked, worker=False)
    assert caught.value.problem.startswith(f"The teacher {several}/b.pt is not the file that this run began with")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{0}/a.pt,{0}/b.pt", "names 2, and this run began with 3"),
        ("{0}/b.pt,{0}/a.pt,{0}/c.pt", "is not the file that this run began with"),
        ("{0}/a.pt:red,{0}/b.pt,{0}/c.pt", "this run began with .*a.pt:red.green"),
        ("{0}/a.pt,{0}/b.pt,{0}/c.pt:dog", "this run began with .*c.pt"),
    ],
)
def test_a_resumed_run_keeps_its_teachers_and_their_classes(several: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        settle({"resume": str(several / "weights" / "last.pt"), "teacher": text.format(several)}, worker=False)


@pytest.mark.parametrize("teacher", ["self", "self:levels"])
def test_a_student_that_teaches_itself_needs_no_file(tmp_path: Path, teacher: str) -> None:
    config = build_config({"teacher": teacher, "losses": "cls"})
    Sidecar(config.to_dict(), settings._fingerprints(teacher), {3: {}}).save(tmp_path / "weights")
    asked = {"resume": str(tmp_path / "weights" / "last.pt")}
    assert settle(asked, worker=False)[0] == config
    other = "self" if teacher != "self" else "self:levels"
    with pytest.raises(UserError, match="this run began with"):
        settle({**asked, "teacher": other}, worker=False)


def test_a_resumed_run_may_have_its_teacher_elsewhere(begun: Path) -> None:
    asked = {"resume": str(begun / "last.pt")}
    assert settle(asked, worker=False)[0].teacher_device == ""
    config, sidecar, _ = settle({**asked, "teacher_device": "CPU"}, worker=False)
    assert config.teacher_device == sidecar.config["teacher_device"] == "cpu"
    sidecar.save(begun)  # as the next epoch does
    assert settle(asked, worker=False)[0].teacher_device == "cpu"
    for device, said in (("gpu", "is not one device"), (99, "teacher_device=cuda:99 is not there")):
        with pytest.raises(UserError, match=said):
            settle({**asked, "teacher_device": device}, worker=False)
    with pytest.raises(UserError, match="each process has a teacher of its own"):
        settle({**asked, "teacher_device": "cpu", "device": "0,1"}, worker=False)


def test_a_resumed_run_may_have_another_precision(begun: Path) -> None:
    asked = {"resume": str(begun / "last.pt")}
    assert settle({**asked, "teacher_precision": "fp32"}, worker=False)[0].teacher_precision == "fp32"
    with pytest.raises(UserError, match="teacher_precision=fp23 is not a precision"):
        settle({**asked, "teacher_precision": "fp23"}, worker=False)


def test_a_worker_is_told_where_its_teacher_runs() -> None:
    config = build_config({**NEW, "teacher_device": 1})
    with handed_down(config, Sidecar(config.to_dict(), "abc")):
        assert settle({}, worker=True)[0].teacher_device == "cuda:1"


def test_a_resumed_run_names_a_folder_for_its_cache(begun: Path) -> None:
    with pytest.raises(UserError, match="teacher_cache=True names no folder"):
        settle({"resume": str(begun / "last.pt"), "teacher_cache": True}, worker=False)
