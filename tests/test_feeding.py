"""Trainings on images without labels, of other classes, of another sensor: a toy set, one or two epochs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO

from tests.conftest import save_detector
from tests.feeding import FAST, columns, trainer_of
from tests.oracle import SIDE, TURNED, Oracle
from tests.photos import changed, film
from yolokd import distill
from yolokd.api import check
from yolokd.compat.joined import UNLABELLED, JoinedDataset
from yolokd.errors import UserError
from yolokd.predictions import Predictions
from yolokd.pseudo import NEVER
from yolokd.teachers.live import LARGER
from yolokd.teachers.mean import MeanPanel


def test_a_training_learns_from_both_kinds_and_is_resumed(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    before = sorted(more.rglob("*"))
    run = distill(
        toy_student, toy_teacher, data=toy_data, unlabelled=more, unlabelled_ratio=1, project=str(tmp_path), **FAST
    )
    assert sorted(more.rglob("*")) == before
    listed = (run.save_dir / "unlabelled.txt").read_text().splitlines()
    assert listed == [str(more / f"{i}.png") for i in range(6)]
    assert "broken.png" in (run.save_dir / "unlabelled_left_out.csv").read_text()
    row = columns(run.save_dir)
    assert all(float(row[f"train/kd_{name}_loss"]) > 0 for name in ("cls", "box", "cwd"))
    recipe = yaml.safe_load((run.save_dir / "distill.yaml").read_text())
    assert recipe["unlabelled"] == [str(more)]
    assert YOLO(run.best).predict(torch.zeros(1, 3, 64, 64), verbose=False)[0].boxes is not None
    # Begun again after a kill before the first checkpoint: the images are found anew.
    shutil.rmtree(run.save_dir / "weights")
    assert distill(resume=run.save_dir, **{"epochs": 1}).last.is_file()


def test_each_batch_says_which_images_have_no_labels(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, unlabelled=str(more), unlabelled_ratio=1)
    assert isinstance(trainer.train_loader.dataset, JoinedDataset)
    assert trainer.criterion is not None
    assert trainer.criterion.pseudo is not None
    assert trainer.criterion.pseudo.thresholds.shape == (3,)
    for batch in trainer.train_loader:
        assert sum(batch[UNLABELLED]) == 2
        bare = {i for i, without in enumerate(batch[UNLABELLED]) if without}
        assert not bare & set(batch["batch_idx"].int().tolist())


def says_the_truth(
    panel: Any, truth: dict[str, Any], teacher_names: dict[int, str]
) -> Callable[..., list[Predictions]]:
    """What a teacher answers that sees each object of the images without labels; truth: labels by file name."""

    def ask(batch: Any, student: Any = None) -> list[Predictions]:
        rows = []
        for i, (file, bare) in enumerate(zip(batch["im_file"], batch[UNLABELLED], strict=True)):
            if not bare:
                continue
            label = truth[Path(file).name]
            for c, (x, y, w, h) in zip(label["cls"].ravel(), label["bboxes"] * SIDE, strict=True):
                rows.append((i, c, 0.95, x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        said = Oracle(rows, teacher_names)(batch)
        return [Predictions(panel.views[0].class_map(said.scores), said.boxes, None)]

    return ask


def targets_of(trainer: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The batch that the detection loss is given."""
    criterion, seen = trainer.criterion, {}
    criterion.pseudo.thresholds = torch.tensor([0.5, 0.5, 0.5])
    monkeypatch.setattr(criterion, "base", lambda preds, batch: seen.update(batch) or (torch.zeros(3), {}))
    monkeypatch.setattr(criterion._assigners[0], "take", lambda strides: None)
    monkeypatch.setattr(criterion, "_distil", lambda *args: {})
    criterion(trainer.model(batch["img"]), batch)
    return seen


def test_a_perfect_teacher_makes_the_labels_that_were_taken_away(
    toy_data: Path, toy_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end through loader, thresholds and criterion: each object of an image without labels is a target again,
    with the class that the student's data set gives it, although the teacher's classes stand in another order."""
    teacher = save_detector("yolov8n.yaml", tmp_path / "t.pt", TURNED)
    (tmp_path / "all").mkdir()
    for file in (toy_data.parent / "images/train").glob("*.png"):  # other pixels, so that they are no training images
        cv2.imwrite(str(tmp_path / "all" / file.name), cv2.imread(str(file)))
    off = dict.fromkeys(("mosaic", "fliplr", "scale", "translate", "hsv_h", "hsv_s", "hsv_v"), 0.0)
    trainer = trainer_of(
        toy_data, toy_student, teacher, tmp_path / "p", unlabelled=str(tmp_path / "all"), unlabelled_ratio=1, **off
    )
    truth = {Path(label["im_file"]).name: label for label in trainer.train_loader.dataset.labelled.labels}
    monkeypatch.setattr(trainer.panel, "ask", says_the_truth(trainer.panel, truth, TURNED))
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    seen = targets_of(trainer, batch, monkeypatch)
    bare = [i for i, without in enumerate(batch[UNLABELLED]) if without]
    assert bare
    for i in bare:
        here, expected = seen["batch_idx"] == i, truth[Path(batch["im_file"][i]).name]
        # Two objects of one class whose middles share an anchor are one detection of the oracle.
        assert set(seen["cls"][here].ravel().tolist()) <= set(expected["cls"].ravel().tolist())
        assert len(expected["cls"]) == 0 or here.any()
        for label, box in zip(seen["cls"][here].ravel(), seen["bboxes"][here], strict=True):
            same = expected["bboxes"][expected["cls"].ravel() == float(label)]
            assert np.abs(same - box.numpy()).max(1).min() < 0.02


@pytest.mark.parametrize("cached", [False, True])
def test_no_labelled_image_at_all(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path, cached: bool
) -> None:
    file = changed(toy_data, tmp_path, train=None)
    keys = {"teacher_cache": str(tmp_path / "answers"), "losses": "cls,box"} if cached else {}
    run = distill(toy_student, toy_teacher, data=file, unlabelled=more, project=str(tmp_path), **keys, **FAST)
    row = columns(run.save_dir)
    assert float(row["train/kd_cls_loss"]) > 0
    assert "metrics/mAP50(B)" in row
    assert "metrics/mAP50-95(B)" in run.metrics


def test_two_classes_of_a_teacher_without_data(
    toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    keys = {"student_classes": "blue,red", "val": False, "pseudo_precision": "off"}
    two = {**FAST, "epochs": 2}
    run = distill("yolo11n.yaml", toy_teacher, unlabelled=more, project=str(tmp_path), **keys, **two)
    model = YOLO(run.best)
    assert model.names == {0: "blue", 1: "red"}
    row = columns(run.save_dir)
    assert not [column for column in row if column.startswith("metrics/")]  # nothing was measured, so nothing is said
    lines = (run.save_dir / "results.csv").read_text().splitlines()
    assert len({line.count(",") for line in lines}) == 1
    assert float(row["train/kd_cls_loss"]) > 0
    assert YOLO(run.last).names == {0: "blue", 1: "red"}


def test_two_classes_validate_on_the_labels_of_all(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    keys = {"student_classes": "blue,red", "unlabelled": str(more)}
    trainer = trainer_of(toy_data, "yolo11n.yaml", toy_teacher, tmp_path, **keys)
    own = {"blue": 0, "red": 1}
    names = yaml.safe_load(toy_data.read_text())["names"]
    for loader in (trainer.test_loader.dataset, trainer.train_loader.dataset.labelled):
        for label in loader.labels:
            text = Path(label["im_file"].replace("images", "labels")).with_suffix(".txt").read_text()
            rows = [int(line.split()[0]) for line in text.splitlines()]
            assert label["cls"].ravel().tolist() == [own[names[row]] for row in rows if names[row] in own]
    assert trainer.model.names == {0: "blue", 1: "red"}
    for other, said in (
        ("blue,purple", "neither teacher nor labels know purple"),
        ("blue,cat", "labels of data= do not"),
    ):
        teacher = save_detector("yolov8n.yaml", tmp_path / "t.pt", {0: "blue", 1: "cat"})
        with pytest.raises(UserError, match=said):
            trainer_of(toy_data, "yolo11n.yaml", teacher, tmp_path / "b", **{**keys, "student_classes": other})


def test_pseudo_boxes_may_be_off(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, unlabelled=str(more), pseudo_precision="off")
    assert trainer.criterion is not None
    assert trainer.criterion.pseudo is not None
    assert trainer.criterion.pseudo.thresholds.tolist() == [NEVER] * 3


def test_in_another_domain_the_teacher_sees_the_weak_view_and_follows(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, unlabelled=str(more), domain="adapt")
    assert isinstance(trainer.panel, MeanPanel)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    assert batch[LARGER].shape == batch["img"].shape
    assert not torch.equal(batch[LARGER], batch["img"])
    assert trainer.criterion is not None
    for _ in range(2):
        trainer.criterion(trainer.model(batch["img"]), batch)
    assert trainer.panel.share > 0


@pytest.mark.parametrize("view", ["gray", "dark", "half"])
def test_the_student_sees_less_in_training_and_in_validation(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path, view: str
) -> None:
    off = dict.fromkeys(("mosaic", "fliplr", "scale", "translate", "hsv_h", "hsv_s", "hsv_v"), 0.0)
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, student_view=view, **off)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    files = [cv2.imread(file)[:, :, ::-1] for file in batch["im_file"]]
    for theirs, ours, file in zip(batch[LARGER], batch["img"], files, strict=True):
        whole = cv2.resize(file, (64, 64), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1) / 255
        assert np.abs(theirs.numpy() - whole).max() < 0.02
        assert float((ours - theirs).abs().mean()) > 0.01
        assert view != "gray" or torch.equal(ours[0], ours[1])
    val = next(iter(trainer.test_loader))["img"].float() / 255
    assert view != "gray" or torch.equal(val[:, 0], val[:, 1])
    plain = trainer_of(toy_data, toy_student, toy_teacher, tmp_path / "plain")
    assert not torch.equal(val, next(iter(plain.test_loader))["img"].float() / 255)


def test_the_teacher_sees_the_image_of_the_same_name(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    partners = tmp_path / "rgb"
    for split in ("train", "val"):
        (partners / split).mkdir(parents=True)
        for file in (toy_data.parent / "images" / split).glob("*.png"):
            cv2.imwrite(str(partners / split / file.name), 255 - cv2.imread(str(file)))
    off = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "mosaic": 1.0}
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, teacher_images=str(partners), **off)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    border = (batch["img"] * 255).round() == 114
    same = (batch[LARGER] - (1 - batch["img"])).abs() < 0.02
    assert (same | border).float().mean() > 0.98  # where tiles meet, pixels are mixed
    assert same.float().mean() > 0.3
    (partners / "train/0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png"):
        trainer_of(toy_data, toy_student, toy_teacher, tmp_path / "b", teacher_images=str(partners))


def test_the_cache_holds_labelled_unlabelled_and_judging_images(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    cached = {"teacher_cache": str(tmp_path / "answers"), "losses": "cls,box"}
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, unlabelled=str(more), **cached)
    assert trainer.criterion is not None
    assert trainer.criterion.pseudo is not None
    assert len(trainer.panel.views[0].teacher.cache.index) == 8 + 6 + 4  # type: ignore[union-attr, attr-defined]
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    trainer.criterion(trainer.model(batch["img"]), batch)[0].sum().backward()


@pytest.mark.parametrize("kind", ["detr", "two", "end2end student", "larger"])
def test_teachers_of_every_kind_make_pseudo_boxes(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path, kind: str
) -> None:
    """What is sure of something says where; the student's own grid does not matter."""
    from tests.lively import save_lively, save_tiny_detr

    lively = save_lively(tmp_path / "lively.pt")
    teacher = {"detr": save_tiny_detr(tmp_path / "d.pt"), "two": f"{lively},{toy_teacher}"}.get(kind, lively)
    student = "yolo26n.yaml" if kind == "end2end student" else toy_student
    larger = {"teacher_imgsz": 96} if kind == "larger" else {}
    keys = {"losses": "cls,box", "unlabelled": str(more), **larger}
    trainer = trainer_of(toy_data, student, teacher, tmp_path / "p", **keys)
    criterion = trainer.criterion
    assert criterion is not None
    assert criterion.pseudo is not None
    criterion.pseudo.thresholds = torch.full((3,), 0.2)
    found = 0
    for batch in trainer.train_loader:
        batch = trainer.preprocess_batch(batch)
        total = criterion(trainer.model(batch["img"]), batch)[0]
        assert torch.isfinite(total).all()
        bare = [i for i, without in enumerate(batch[UNLABELLED]) if without]
        found += sum(int((criterion.taught["batch_idx"] == i).sum()) for i in bare) if criterion.taught else 0
    assert found > 0


def test_the_thresholds_are_found_on_what_the_teacher_sees(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    """... also where Ultralytics keeps images in memory."""
    partners = tmp_path / "rgb"
    for folder, name in ((toy_data.parent / "images/train", "train"), (toy_data.parent / "images/val", "val")):
        (partners / name).mkdir(parents=True)
        for file in folder.glob("*.png"):
            cv2.imwrite(str(partners / name / file.name), 255 - cv2.imread(str(file)))
    shutil.copytree(more, partners / "images", ignore=shutil.ignore_patterns("broken*"))
    keys = {"unlabelled": str(more), "teacher_images": str(partners), "cache": "ram"}
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path / "p", **keys)
    trainer.criterion = None
    trainer.build_dataset(trainer.data["train"], "train", 4)
    seen = torch.cat([batch["img"] for batch in trainer._judging_batches()])
    theirs = np.mean([cv2.imread(str(file)) for file in (partners / "val").iterdir()]) / 255
    assert theirs > 0.6
    assert float(seen.mean()) == pytest.approx(theirs, abs=0.02)


def test_a_training_split_without_all_its_labels(
    toy_data: Path, toy_student: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    """Named in unlabelled=, the images that have no label file are learnt from as such, and are no background."""
    copy = tmp_path / "toy"
    shutil.copytree(toy_data.parent, copy, ignore=shutil.ignore_patterns("*.cache"))
    for i in range(3):
        (copy / f"labels/train/{i}.txt").unlink()
    file = copy / "toy.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(toy_data.read_text()), "path": str(copy)}))
    trainer = trainer_of(file, toy_student, toy_teacher, tmp_path / "p", unlabelled=str(copy / "images/train"))
    both = trainer.train_loader.dataset
    assert sorted(Path(f).stem for f in both.unlabelled.im_files) == ["0", "1", "2"]
    assert sorted(Path(f).stem for f in both.labelled.im_files) == ["3", "4", "5", "6", "7"]


def test_a_video_alone(toy_teacher: Path, more: Path, tmp_path: Path) -> None:
    film(tmp_path / "f.avi", more)
    keys = {"student_classes": "blue,red", "val": False, "unlabelled": str(tmp_path / "f.avi")}
    run = distill("yolo11n.yaml", toy_teacher, project=str(tmp_path / "p"), **keys, **FAST)
    assert len(list((run.save_dir / "frames").rglob("*.png"))) == 4


def test_nothing_is_kept_beside_images_without_labels(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    before = sorted(more.rglob("*"))
    trainer = trainer_of(toy_data, toy_student, toy_teacher, tmp_path, unlabelled=str(more), cache="disk")
    for _ in trainer.train_loader:
        pass
    assert sorted(more.rglob("*")) == before
    for file in toy_data.parent.rglob("*.npy"):
        file.unlink()


def test_before_training_without_labels_one_can_ask(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    file = changed(toy_data, tmp_path, train=None)
    fast = {"imgsz": 64, "device": "cpu", "unlabelled": str(more)}
    said = check(toy_teacher, toy_student, file, **fast)
    assert "unlabelled: 6 images" in said
    assert "student mAP50-95 on" in said
    assert "mAP" not in check(toy_teacher, "yolo11n.yaml", student_classes="red", val=False, **fast)


def test_in_steps_without_labels(
    toy_data: Path, toy_student: Path, toy_teacher: Path, more: Path, tmp_path: Path
) -> None:
    file = changed(toy_data, tmp_path, train=None)
    keys = {"unlabelled": more, "student_classes": ["red", "blue"], "data": file, "project": str(tmp_path / "p")}
    run = distill("yolo11n.yaml", toy_teacher, via="yolov8n.yaml", **keys, **FAST)
    assert YOLO(run.best).names == {0: "red", 1: "blue"}
