import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import ultralytics.engine.trainer as engine
from filelock import FileLock

from tests.compat.test_training import detector
from yolokd.compat.files import (
    PARTIAL,
    atomic_replace,
    atomic_strip,
    begin_folder,
    commit,
    locked,
    recover,
)
from yolokd.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def torn(partial: Path) -> None:
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_replace(path, torn)
    assert path.read_text() == "old"
    atomic_replace(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_strip_is_by_rename_and_only_inside(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"model": None, "ema": detector("yolo11n.yaml"), "optimizer": {"x": 1}, "epoch": 3}, path)
    outside, inode = engine.strip_optimizer, path.stat().st_ino
    with atomic_strip():
        assert engine.strip_optimizer(path)["epoch"] == -1
    assert engine.strip_optimizer is outside
    assert path.stat().st_ino != inode
    assert torch.load(path, weights_only=False)["optimizer"] is None


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_set_of_checkpoints_arrives_whole_whenever_the_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    weights = tmp_path / "weights"
    stage = weights / PARTIAL
    stage.mkdir(parents=True)
    (weights / "last.pt").write_text("old")
    for name in ("last.pt", "best.pt", "epoch1.pt"):
        (stage / name).write_text("new")
    replace, done = Path.replace, []

    def until(self: Path, target: Path) -> Path:
        done.append(self.name)
        if len(done) > 1 + moved:  # the stage's own rename, then the files
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", until)
    with pytest.raises(KeyboardInterrupt):
        commit(stage, weights)
    monkeypatch.undo()
    assert (weights / "last.pt").read_text() == "old"
    recover(weights)
    assert files(weights) == {"last.pt": "new", "best.pt": "new", "epoch1.pt": "new"}


def test_recover_discards_what_is_torn_older_or_not_wanted(tmp_path: Path) -> None:
    weights = tmp_path / "weights"

    def leave(stage: str) -> Path:
        (weights / stage).mkdir(parents=True)
        (weights / stage / "last.pt").write_text("staged")
        return weights / stage / "last.pt"

    recover(weights)  # no folder yet
    leave(PARTIAL)
    (weights / f".last.pt.1{PARTIAL}").write_text("torn")
    (tmp_path / f".results.csv.2{PARTIAL}").write_text("torn")
    recover(weights)
    assert files(tmp_path) == {}
    leave(".complete")
    recover(weights, forward=False)
    assert files(tmp_path) == {}
    overtaken = leave(".complete")
    os.utime(overtaken, (1, 1))
    (weights / "last.pt").write_text("newer")
    recover(weights)
    assert files(tmp_path) == {"weights/last.pt": "newer"}


def test_a_run_folder_appears_with_its_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project" / "train"
    left = tmp_path / "project" / f".train{PARTIAL}"
    left.mkdir(parents=True)
    (left / "torn").write_text("of a killed run")
    rename = Path.replace

    def watch(self: Path, target: Path) -> Path:
        assert not folder.exists()
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    begin_folder(folder, "a.yaml", "one")
    monkeypatch.undo()
    (folder / "other").write_text("stays")
    begin_folder(folder, "a.yaml", "two")
    assert files(tmp_path) == {"project/train/a.yaml": "two", "project/train/other": "stays"}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("there", [False, True])
def test_a_run_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError) as caught:
        begin_folder(tmp_path / "run", "a.yaml", "one")
    assert caught.value.problem == f"{tmp_path / 'run'} cannot be written to: No space left on device."
    assert "project=" in caught.value.remedy


def test_a_lock_is_held_by_one_and_is_none_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def hold(name: str) -> None:
        with locked(tmp_path / "new" / "a.lock") as refusal:
            assert refusal is None
            order.append(name)
            time.sleep(0.05)
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hold, "ab"))
    assert order[0] == order[1] != order[2] == order[3]
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file" / "a.lock") as refusal:  # no folder
        assert isinstance(refusal, OSError)
    monkeypatch.setattr(FileLock, "acquire", full)
    with locked(tmp_path / "a.lock") as refusal:
        assert isinstance(refusal, OSError)
    with pytest.raises(KeyError), locked(tmp_path / "a.lock"):
        raise KeyError  # what goes wrong inside is not its business
