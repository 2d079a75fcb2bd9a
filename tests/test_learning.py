"""What a run would learn from, before it begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import NAMES, save_detector
from tests.photos import changed
from tests.photos import photos as make_photos
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.learning import ImagesToLearn, data_of, unlabelled_of
from yolokd.preflight import preflight


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 3, seed=2)


def looked(teacher: Path, student: Path, data: Path | None, **ours: Any) -> Any:
    args = {"model": str(student), "imgsz": 64, "device": "cpu", **({"data": str(data)} if data else {"val": False})}
    return preflight(build_config({"teacher": str(teacher), **ours}), args)


def test_the_preflight_counts_them(toy_teacher: Path, toy_student: Path, toy_data: Path, photos: Path) -> None:
    report = looked(toy_teacher, toy_student, toy_data, unlabelled=str(photos))
    assert "unlabelled: 3 images without labels to learn from" in report.lines
    assert report.config.images.unlabelled == (str(photos),)
    assert not (photos.parent / "run").exists()


def test_without_data_the_trial_runs_on_them(toy_teacher: Path, photos: Path) -> None:
    report = looked(toy_teacher, Path("yolo11n.yaml"), None, unlabelled=str(photos), student_classes="blue,red")
    assert dict(report.pairs[0].student.names) == {0: "blue", 1: "red"}
    assert report.class_maps[0].mapped == 2


def test_they_are_all_that_a_cache_holds_of_a_run(toy_teacher: Path, toy_data: Path, photos: Path) -> None:
    config = build_config({"teacher": str(toy_teacher), "unlabelled": str(photos)})
    data = data_of(config, {"data": str(toy_data)})
    assert unlabelled_of(config, data) == sorted(map(str, photos.iterdir()))
    assert unlabelled_of(build_config({"teacher": str(toy_teacher)}), data) == []
    found = ImagesToLearn.find(config, data, {})
    assert len(found.files) == 8 + 3
    assert not found.partners


def test_teacher_and_student_may_take_other_channels(toy_data: Path, toy_teacher: Path, tmp_path: Path) -> None:
    """A grey student under a teacher in colour: without pairs refused, with them each sees its own."""
    grey = changed(toy_data, tmp_path, channels=1)
    student = save_detector("yolo11n.yaml", tmp_path / "s.pt", NAMES)
    with pytest.raises(UserError, match="channels"):
        looked(toy_teacher, student, grey)
    report = looked(toy_teacher, student, grey, teacher_images=str(toy_data.parent / "images"))
    assert report.slowdown > 1
    config = build_config({"teacher": str(toy_teacher), "teacher_images": str(toy_data.parent / "images")})
    found = ImagesToLearn.find(config, data_of(config, {"data": str(grey)}), {})

    teacher = SimpleNamespace(model=SimpleNamespace(yaml={"channels": 3}))
    colour = SimpleNamespace(views=[SimpleNamespace(teacher=teacher)])
    ours, theirs = found.sample(colour, 64, 2)  # type: ignore[arg-type]
    assert (ours.shape[1], theirs.shape[1] if theirs is not None else 0) == (1, 3)
    assert torch.isfinite(ours).all()
