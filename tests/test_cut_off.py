"""Trainings on images without labels that are killed and resumed, or run in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from tests.feeding import FAST, settings, trainer_of
from tests.photos import changed, film
from yolokd import distill
from yolokd.compat.joined import JoinedDataset
from yolokd.compat.student_validator import StudentValidator
from yolokd.trainer import DistillationTrainer


@pytest.mark.parametrize("case", ["both", "no data", "video"])
def test_a_run_that_was_cut_off_goes_on_with_the_same_images(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path, case: str, monkeypatch: Any
) -> None:
    keys: dict[str, Any] = {"unlabelled": str(more), "data": str(toy_data)}
    if case == "no data":
        keys = {"unlabelled": str(more), "student_classes": "blue,red", "val": False}
        labels = more.parent / "labels"  # beside images/, where Ultralytics would look for them
        labels.mkdir(exist_ok=True)
        (labels / "0.txt").write_text("0 .5 .5 .2 .2\n")
    if case == "video":
        film(tmp_path / "f.avi", more)
        keys["unlabelled"] = str(tmp_path / "f.avi")
    save, saved = DistillationTrainer.save_model, []

    def killed(self: DistillationTrainer) -> bool:
        if saved:
            raise KeyboardInterrupt
        saved.append(save(self))
        return True

    monkeypatch.setattr(DistillationTrainer, "save_model", killed)
    student = "yolo11n.yaml" if case == "no data" else toy_student
    with pytest.raises(KeyboardInterrupt):
        distill(student, toy_teacher, project=str(tmp_path / "p"), **keys, **{**FAST, "epochs": 3})
    monkeypatch.setattr(DistillationTrainer, "save_model", save)
    folder = tmp_path / "p/train"
    listed = (folder / "unlabelled.txt").read_text()
    assert len(listed.split()) == (4 if case == "video" else 6)
    monkeypatch.setattr("yolokd.feeding.collect", lambda *_: pytest.fail("looked for anew"))
    run = distill(resume=folder / "weights/last.pt")
    assert (folder / "unlabelled.txt").read_text() == listed
    rows = (run.save_dir / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]
    assert YOLO(run.last).names == ({0: "blue", 1: "red"} if case == "no data" else {0: "red", 1: "green", 2: "blue"})
    (more.parent / "labels/0.txt").unlink(missing_ok=True)


def test_in_a_process_of_several_the_student_is_wrapped(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    """Ultralytics wraps the model for DDP before it builds the data sets."""
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, unlabelled=str(more))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        trainer.model = torch.nn.parallel.DistributedDataParallel(trainer.model)
        assert isinstance(trainer.build_dataset(trainer.data["train"], "train", 4), JoinedDataset)
        assert trainer.pseudo_labels() is not None
    finally:
        torch.distributed.destroy_process_group()


def test_workers_read_what_was_asked_for_since_the_parents_folder_goes(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    file = changed(toy_data, tmp_path, train=None)
    given = settings(file, toy_student, toy_teacher, tmp_path / "p", unlabelled=str(more))
    alone = DistillationTrainer(overrides=dict(given))
    assert Path(alone.args.data) == alone.save_dir / "data.yaml"
    parent = DistillationTrainer(overrides=dict(given))
    parent.ddp, parent.args.data = True, str(file)
    parent.get_dataset()
    assert parent.args.data == str(file)


@pytest.mark.parametrize("case", ["classes", "view", "no data"])
def test_a_kill_in_the_final_evaluation_is_made_up_for(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path, case: str, monkeypatch: Any
) -> None:
    keys: dict[str, Any] = {
        "classes": {"data": str(toy_data), "student_classes": "blue,red"},
        "view": {"data": str(toy_data), "student_view": "gray"},
        "no data": {"student_classes": "blue,red", "val": False, "unlabelled": str(more)},
    }[case]
    student = toy_student if case == "view" else "yolo11n.yaml"
    run = distill(student, toy_teacher, project=str(tmp_path), **keys, **{**FAST, "plots": True})
    seen: list[Any] = []
    loop = StudentValidator.init_metrics
    monkeypatch.setattr(StudentValidator, "init_metrics", lambda self, model: seen.append(self) or loop(self, model))
    (run.save_dir / "results.png").unlink()
    distill(resume=run.save_dir)
    assert (run.save_dir / "results.png").is_file()
    if case == "no data":
        assert not seen
        return
    [validator] = seen
    batch = next(iter(validator.dataloader))
    if case == "view":
        assert torch.equal(batch["img"][:, 0], batch["img"][:, 1])
    else:
        assert set(batch["cls"].ravel().tolist()) <= {0.0, 1.0}
        rows = (toy_data.parent / "labels/val/0.txt").read_text().splitlines()
        wanted = {0: 1.0, 2: 0.0}  # red, blue
        found = batch["cls"][batch["batch_idx"] == 0].ravel().tolist()
        assert sorted(found) == sorted(wanted[int(row[0])] for row in rows if int(row[0]) in wanted)
