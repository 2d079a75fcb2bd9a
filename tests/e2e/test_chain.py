"""Real trainings in steps, on the toy set."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path
from typing import Any

import pytest
from ultralytics import YOLO

from tests.conftest import save_detector
from tests.test_resume import said  # noqa: F401
from tests.test_trainer import FAST, rows
from yolokd.api import distill
from yolokd.steps import Chain
from yolokd.trainer import DistillationTrainer

pytestmark = pytest.mark.e2e
EXAMPLES = Path(__file__).parents[2] / "examples"


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in between, of 80 classes with other names than the toy set's."""
    return save_detector("yolov8n.yaml", tmp_path_factory.mktemp("via") / "between.pt", seed=3)


def losses(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows(folder)]


def test_the_second_step_is_a_training_under_the_first_ones_best(
    toy_data: Path, toy_student: Path, toy_teacher: Path, between: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {**FAST, "epochs": 1, "data": toy_data, "project": tmp_path, "losses": "cls,cwd"}
    run = distill(toy_student, toy_teacher, via=[between], name="chain", **keys)
    first, second = run.save_dir / "1-between", run.save_dir / "2-student"
    alone = distill(toy_student, first / "weights" / "best.pt", name="alone", **keys)
    assert losses(second) == losses(alone.save_dir)  # the student's own weights, that teacher, these settings
    assert float(losses(first)[0]["train/kd_cls_loss"]) > 0
    assert float(losses(second)[0]["train/kd_cls_loss"]) > 0
    for name in ("best.pt", "last.pt"):
        whole = run.save_dir / "weights" / name
        assert whole.read_bytes() == (second / "weights" / name).read_bytes()
        assert not whole.is_symlink()
    assert run.metrics == pytest.approx(alone.metrics)
    assert YOLO(run.best).names == {0: "red", 1: "green", 2: "blue"}


def test_a_kill_within_the_second_step_is_resumed_there(
    toy_data: Path, toy_student: Path, toy_teacher: Path, between: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = DistillationTrainer.save_model

    def killed(trainer: DistillationTrainer) -> bool:
        done = save(trainer)
        if trainer.save_dir.name == "2-student" and trainer.epoch == 0:
            raise Killed
        return done

    keys: dict[str, Any] = {**FAST, "epochs": 2, "data": toy_data, "project": tmp_path, "losses": "cls,cwd"}
    monkeypatch.setattr(DistillationTrainer, "save_model", killed)
    with pytest.raises(Killed):
        distill(toy_student, toy_teacher, via=str(between), name="chain", **keys)
    monkeypatch.setattr(DistillationTrainer, "save_model", save)
    folder = tmp_path / "chain"
    assert [step.state for step in Chain.load(folder).steps] == ["finished", "running"]
    first = folder / "1-between" / "weights" / "best.pt"
    before = first.stat().st_mtime_ns, hashlib.sha256(first.read_bytes()).hexdigest()
    run = distill(resume=folder / "2-student" / "weights" / "last.pt")
    assert run.save_dir == folder
    assert [row["epoch"] for row in rows(folder / "2-student")] == ["1", "2"]
    assert (first.stat().st_mtime_ns, hashlib.sha256(first.read_bytes()).hexdigest()) == before
    assert run.best.read_bytes() == (folder / "2-student" / "weights" / "best.pt").read_bytes()


def test_born_again(
    toy_data: Path,
    toy_student: Path,
    tmp_path: Path,
    said: list[str],  # noqa: F811
) -> None:
    keys: dict[str, Any] = {**FAST, "epochs": 1, "data": toy_data, "project": tmp_path, "losses": "cls"}
    run = distill(toy_student, "born-again", generations=1, name="again", **keys)
    plain, taught = (losses(run.save_dir / name)[0] for name in "01")
    assert "train/kd_cls_loss" not in plain
    assert float(taught["train/kd_cls_loss"]) > 0
    best = Chain.load(run.save_dir).best
    assert run.metrics["fitness"] == best.fitness
    assert run.best.read_bytes() == (run.save_dir / best.name / "weights" / "best.pt").read_bytes()
    assert any(line.startswith("generation 1: ") for line in said)


def test_the_example_goes_on_where_it_was(
    toy_teacher: Path, between: Path, toy_student: Path, toy_data: Path, runs_here: Path, capsys: Any
) -> None:
    keys = map(str, (toy_teacher, between, toy_student, toy_data, 1, 64))
    main = runpy.run_path(str(EXAMPLES / "chain.py"))["main"]
    main(*keys)
    once = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in once] == ["direct", "chain"]
    main("nowhere.pt", "nowhere.pt", "nowhere.pt", "nowhere.yaml")  # all is finished: nothing of this is read
    assert capsys.readouterr().out.splitlines()[-2:] == once
