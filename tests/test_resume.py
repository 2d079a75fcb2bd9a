"""What resume finds in a run folder, for every state that a kill can leave it in."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.utils import LOGGER

from tests.test_trainer import overrides, rows
from yolokd.api import distill
from yolokd.errors import UserError
from yolokd.resume import RECIPE, _last_epoch, locate, resume_arguments
from yolokd.trainer import DistillationTrainer

States = dict[str, Path]


@pytest.fixture(scope="module")
def states(toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> States:
    """Copies of one run's folder: before its first checkpoint, after one epoch of two, after both, and at its end."""
    project, kept = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("states")
    args = overrides(toy_data, toy_student, project, teacher=str(toy_teacher), epochs=2)
    trainer = DistillationTrainer(overrides=args)
    inner = trainer.run_callbacks

    def callbacks(event: str) -> None:
        inner(event)
        if event == "on_train_epoch_end" and trainer.epoch == 0:
            shutil.copytree(trainer.save_dir, kept / "begun")
        elif event == "on_model_save":
            shutil.copytree(trainer.save_dir, kept / ("half" if trainer.epoch == 0 else "trained"))

    trainer.run_callbacks = callbacks  # type: ignore[method-assign]
    trainer.train()
    shutil.copytree(trainer.save_dir, kept / "finished")
    return {folder.name: folder for folder in kept.iterdir()}


@pytest.fixture
def run(states: States, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A fresh copy of the state that the test names by its parameter."""
    return Path(shutil.copytree(states[request.param], tmp_path / "run"))


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What Ultralytics' logger prints; it does not propagate, so caplog is blind to it."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


def of_state(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", [name], indirect=True)


def checkpoint(file: Path) -> dict[str, Any]:
    return dict(torch.load(file, map_location="cpu", weights_only=False))


def leftovers(run: Path) -> list[Path]:
    return [*run.glob(".*"), *run.glob("weights/.*")]


@of_state("half")
def test_locate_takes_the_file_the_folder_or_the_newest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run / "weights" / "last.pt"
    monkeypatch.chdir(run.parent)
    for name in (last, str(last), run, "run", "run/weights/last.pt", True, "True"):
        assert locate(name) == last.resolve()


@of_state("begun")
def test_locate_finds_a_run_without_a_checkpoint(run: Path) -> None:
    last = run / "weights" / "last.pt"
    assert not last.exists()
    assert locate(last) == locate(run) == last.resolve()


def test_locate_refuses_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="neither a checkpoint there nor a run"):
        locate(tmp_path / "weights" / "last.pt")
    with pytest.raises(UserError, match="neither a checkpoint there nor a run"):
        locate(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run with a checkpoint"):
        locate(True)


@of_state("begun")
def test_before_the_first_checkpoint_the_run_begins_again_with_its_own_settings(
    run: Path, toy_data: Path, toy_student: Path, toy_teacher: Path, said: list[str]
) -> None:
    (run / "weights" / ".partial").mkdir()
    (run / "weights" / ".partial" / "last.pt").write_bytes(b"torn")
    (run / "weights" / ".distill.pt.0123abcd.partial").write_bytes(b"torn")
    (run / ".distill.yaml.0123abcd.partial").write_bytes(b"torn")
    args = resume_arguments(run / "weights" / "last.pt")
    assert args is not None
    assert "resume" not in args
    assert (args["student"], args["teacher"]) == (str(toy_student), str(toy_teacher.resolve()))
    assert (args["data"], args["epochs"], args["imgsz"], args["nbs"]) == (str(toy_data), 2, 64, 4)
    assert (args["save_dir"], args["exist_ok"]) == (str(run), True)
    assert not leftovers(run)
    assert "the run begins again" in said[-1]


@of_state("half")
def test_an_unfinished_run_goes_on_where_it_lies_now(run: Path) -> None:
    last = run / "weights" / "last.pt"
    (run / ".results.csv.0123abcd.partial").write_text("epoch")
    assert resume_arguments(last) == {"model": str(last), "resume": str(last), "save_dir": str(run)}
    assert not leftovers(run)


@of_state("half")
def test_a_whole_first_set_of_checkpoints_is_moved_into_place(run: Path) -> None:
    weights = run / "weights"
    content = (weights / "last.pt").read_bytes()
    (weights / ".complete").mkdir()
    (weights / "last.pt").rename(weights / ".complete" / "last.pt")
    args = resume_arguments(weights / "last.pt")
    assert args is not None
    assert args["resume"] == str(weights / "last.pt")
    assert (weights / "last.pt").read_bytes() == content
    assert not leftovers(run)


@of_state("trained")
def test_after_the_last_epoch_only_the_end_is_made_up_for(run: Path, said: list[str]) -> None:
    weights = run / "weights"
    with (run / "results.csv").open("a") as file:
        file.write("2,1.0,torn")
    assert checkpoint(weights / "last.pt")["optimizer"] is not None
    assert resume_arguments(weights / "last.pt") is None
    for name in ("last.pt", "best.pt"):
        content = checkpoint(weights / name)
        assert content["optimizer"] is None
        assert content["epoch"] == -1
        assert content["train_results"]["epoch"] == [1, 2]
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert any("its final evaluation was not" in line for line in said)


@of_state("finished")
def test_a_best_pt_that_was_not_stripped_is(run: Path, states: States) -> None:
    best = run / "weights" / "best.pt"
    shutil.copy(states["trained"] / "weights" / "best.pt", best)
    assert resume_arguments(run / "weights" / "last.pt") is None
    assert checkpoint(best)["optimizer"] is None
    assert checkpoint(best)["train_results"]["epoch"] == [1, 2]


@of_state("finished")
def test_a_finished_run_says_so_and_stays_as_it_is(run: Path, said: list[str]) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert resume_arguments(run / "weights" / "last.pt") is None
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert f"{run} is finished, nothing to resume. Its student is {run / 'weights' / 'best.pt'}." in said


@of_state("half")
def test_a_checkpoint_that_cannot_be_read_is_an_error_in_words(run: Path) -> None:
    last = run / "weights" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last\.pt"):
        resume_arguments(last)


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "over"),
    [
        (8, 8, 100, False),
        (9, 8, 100, True),  # the tenth of ten
        (4, 2, 3, True),  # epoch 5 brought nothing new for the third time
        (3, 2, 3, False),
        (4, 0, 3, False),  # val=False: no epoch is ever the best, and none stops
        (4, 2, 0, False),  # patience=0 waits for ever
    ],
)
def test_training_is_over_by_its_epochs_or_by_its_patience(epoch: int, best: int, patience: int, over: bool) -> None:
    content = {"epoch": epoch, "stopper": {"best_epoch": best}, "train_args": {"epochs": 10, "patience": patience}}
    assert _last_epoch(content) is over


@pytest.mark.e2e
@pytest.mark.parametrize("run", ["begun", "half"], indirect=True)
def test_resume_ends_with_the_full_table_in_the_folder_that_was_named(run: Path) -> None:
    os.utime(run / RECIPE)
    finished = distill(resume=run / "weights" / "last.pt")
    assert finished.save_dir == run
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert checkpoint(finished.last)["optimizer"] is None


@pytest.mark.e2e
def test_a_run_without_losses_is_resumed_as_well(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    from tests.e2e.test_training import run_until

    trainer = DistillationTrainer(overrides=overrides(toy_data, toy_student, tmp_path, losses="none", epochs=2))
    run_until(trainer, "on_model_save", 0)
    assert [row["epoch"] for row in rows(distill(resume=trainer.last).save_dir)] == ["1", "2"]


@of_state("finished")
def test_a_run_that_begins_anew_in_an_old_folder_is_not_taken_for_the_old_one(
    run: Path, toy_data: Path, toy_student: Path, toy_teacher: Path
) -> None:
    args = overrides(toy_data, toy_student, run.parent, teacher=str(toy_teacher), name="run", exist_ok=True, epochs=5)
    (run / "weights" / ".complete").mkdir()
    shutil.copy(run / "weights" / "last.pt", run / "weights" / ".complete")
    trainer = DistillationTrainer(overrides=args)
    trainer._setup_train()  # as far as it comes before a kill
    goes_on = resume_arguments(locate(run))
    assert goes_on is not None
    assert "resume" not in goes_on
    assert goes_on["epochs"] == 5
