"""Images that cannot be learnt from: two lines, exit code 2, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import train_words
from tests.photos import changed
from tests.photos import photos as make_photos

Refused = Callable[..., tuple[str, str]]


@pytest.fixture
def words(toy_teacher: Path, toy_student: Path, toy_data: Path) -> Callable[..., list[str]]:
    def make(**changes: object) -> list[str]:
        return train_words(toy_teacher, toy_student, toy_data, **{k: str(v) for k, v in changes.items()})

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 2, seed=1)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", "unlabelled="),
        ("empty", "unlabelled="),
        ("unreadable", "can be read"),
        ("validation", "the images that judge"),
        ("no video", "unlabelled="),
        ("list", "unlabelled="),
    ],
)
def test_folders(
    refused: Refused, words: Callable[..., list[str]], toy_data: Path, tmp_path: Path, case: str, said: str
) -> None:
    place = tmp_path / "bad"
    if case == "validation":
        place = toy_data.parent / "images/val"
    elif case == "no video":
        place = tmp_path / "clip.mp4"
        place.write_bytes(b"no video")
    elif case == "list":
        place = tmp_path / "list.txt"
        place.write_text("nowhere.png\n")
    elif case != "missing":
        place.mkdir()
    if case == "unreadable":
        (place / "a.jpg").write_text("no image")
    assert said in refused(*words(unlabelled=place))[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student_classes": "fish"}, "student_classes=fish: neither teacher nor labels know fish"),
        ({"student_classes": "red,fish"}, "know fish"),
        ({"rect": "True"}, "rect=True and unlabelled="),
        ({"student_classes": "red", "classes": "0"}, "classes=0 and student_classes="),
        ({"single_cls": "True"}, "single_cls=True and unlabelled="),
        ({"losses": "none"}, "unlabelled= without a teacher's losses"),
        ({"teacher_every": "2"}, "teacher_every="),
        ({"unlabelled_ratio": "-1"}, "unlabelled_ratio=-1"),
        ({"pseudo_precision": "9"}, "pseudo_precision=9"),
        ({"domain": "adapt", "teacher_cache": "answers"}, "domain= and teacher_cache"),
        ({"via": "yolo11n.yaml", "domain": "adapt"}, "domain= says what one teacher and its student see"),
    ],
)
def test_keys(
    refused: Refused, words: Callable[..., list[str]], photos: Path, changes: dict[str, str], said: str
) -> None:
    assert said in refused(*words(unlabelled=photos, **changes))[0]


def test_no_data_and_nothing_that_makes_up_for_it(
    refused: Refused, words: Callable[..., list[str]], photos: Path
) -> None:
    without = [word for word in words(unlabelled=photos) if not word.startswith("data=")]
    for more in ([], ["val=False"], ["student_classes=red"]):
        problem, remedy = refused(*without, *more)
        assert problem == "data= is missing."
        assert "student_classes=" in remedy


def test_no_labelled_image_needs_others(
    refused: Refused, words: Callable[..., list[str]], toy_data: Path, tmp_path: Path
) -> None:
    assert "'train:' key missing" in refused(*words(data=changed(toy_data, tmp_path, train=None)))[0]


def test_partners(refused: Refused, words: Callable[..., list[str]], toy_data: Path, tmp_path: Path) -> None:
    assert "no folder" in refused(*words(teacher_images=tmp_path / "nowhere"))[0]
    partners = tmp_path / "rgb"
    shutil.copytree(toy_data.parent / "images", partners)
    cv2.imwrite(str(partners / "train/3.png"), np.zeros((32, 48, 3), np.uint8))
    (partners / "train/5.png").unlink()
    problem, remedy = refused(*words(teacher_images=partners))
    assert "2 of 8 images have no partner of their own" in problem
    assert "3.png (48x32 instead of 96x96)" in problem
    assert "5.png" in problem
    assert "same name and size" in remedy


def test_views(refused: Refused, words: Callable[..., list[str]]) -> None:
    assert "student_view=night is not a view" in refused(*words(student_view="night"))[0]
    assert "cannot be together" in refused(*words(student_view="dark", teacher_images="rgb"))[0]


def test_compare(refused: Refused, toy_teacher: Path, toy_student: Path, toy_data: Path, photos: Path) -> None:
    asked = [f"teacher={toy_teacher}", f"student={toy_student}", f"data={toy_data}", f"unlabelled={photos}"]
    problem, remedy = refused("compare", *asked)
    assert "all arms the same images" in problem
    assert "unlabelled.py" in remedy
