from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.evaluation.results import Box, image
from yolokd.compat.validation import ImageResult
from yolokd.evaluation.audit import audit, doubts_about

NAMES = {0: "fish", 1: "shark"}
A, NEAR_A, B = (0, 0, 100, 100), (0, 0, 100, 90), (200, 200, 300, 300)
TOUCHES_A = (60, 0, 160, 100)  # IoU .25 with A
SEES_ALL = {(0, "large"): 0.01, (1, "large"): 0.01}


def said(found: list[tuple[Box, float, int]], truth: list[tuple[Box, int]]) -> list[tuple[float, str, bool]]:
    return [(d.score, d.reason, d.labelled) for d in doubts_about(image(found=found, truth=truth), NAMES, SEES_ALL)]


def test_a_missing_label() -> None:
    assert said([(A, 0.9, 0), (B, 0.7, 1)], [(A, 0)]) == [(0.7, "shark 0.70 without a label", False)]
    assert said([(A, 0.6, 0)], []) == [(0.6, "fish 0.60 without a label", False)]
    assert said([(A, 0.59, 0)], []) == []  # not sure enough
    assert said([(A, 0.9, 0), (TOUCHES_A, 0.8, 0)], [(A, 0)]) == []  # another part of the same thing, perhaps


def test_a_wrong_class() -> None:
    assert said([(NEAR_A, 0.8, 0)], [(A, 1)]) == [(0.8, "fish 0.80 is labelled shark", False)]
    assert said([(TOUCHES_A, 0.8, 0)], [(A, 1)]) == []
    # The teacher half sees the shark, too.
    assert said([(NEAR_A, 0.8, 0), (A, 0.5, 1)], [(A, 1)]) == [
        (pytest.approx(0.4), "fish 0.80 is labelled shark", False)
    ]
    # There is a fish within reach as well: the detection is that one's.
    assert said([(NEAR_A, 0.8, 0)], [(A, 0), (NEAR_A, 1)]) == []


def test_a_doubtful_box() -> None:
    worth = pytest.approx(0.05 / (0.05 + 0.95 * 0.01))
    assert said([(B, 0.5, 0)], [(A, 1)]) == [(worth, "nothing seen at a labelled shark", True)]
    assert said([(A, 0.049, 1)], [(A, 1)]) == [(worth, "nothing seen at a labelled shark", True)]
    assert said([(A, 0.05, 1)], [(A, 1)]) == []
    assert said([(TOUCHES_A, 0.3, 0)], [(A, 1)]) == []  # something is there, whatever it is


def test_one_thing_is_said_once() -> None:
    assert [s for _, s, _ in said([(A, 0.9, 0), (NEAR_A, 0.7, 1), (B, 0.8, 0)], [])] == [
        "fish 0.90 without a label",
        "fish 0.80 without a label",
    ]


def real(tmp_path: Path, name: str, *args: list) -> ImageResult:
    """The image is there as a file, too."""
    folder = tmp_path / "test"
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / name), np.full((480, 640, 3), 90, np.uint8))
    return replace(image(name, *args), file=folder / name)


def test_images_are_ranked_and_drawn(tmp_path: Path) -> None:
    agreed = [real(tmp_path, f"ok{i}.png", [(A, 0.9, 1)], [(A, 1)]) for i in range(9)]
    missing = real(tmp_path, "missing.png", [(A, 0.7, 0), (B, 0.95, 0)], [])
    wrong = real(tmp_path, "wrong.png", [(A, 0.8, 0)], [(A, 1)])
    doubtful = real(tmp_path, "doubtful.png", [], [(B, 1)])
    images = [wrong, *agreed, doubtful, missing]
    entries = audit(images, NAMES, tmp_path / "out")
    assert [(e["image"], e["file"], e["reason"]) for e in entries] == [
        ("audit/000.jpg", "test/missing.png", "fish 0.95 without a label; fish 0.70 without a label"),
        ("audit/001.jpg", "test/wrong.png", "fish 0.80 is labelled shark"),
        ("audit/002.jpg", "test/doubtful.png", "nothing seen at a labelled shark"),
    ]
    # One of 11 labelled large sharks is overlooked.
    assert [e["score"] for e in entries] == [0.95, 0.8, pytest.approx(0.05 / (0.05 + 0.95 / 11))]
    for entry in entries:
        drawn = cv2.imread(str(tmp_path / "out" / entry["image"]))
        assert drawn.shape[1] == 640
        assert drawn.shape[0] > 480  # the caption
    label = cv2.imread(str(tmp_path / "out" / "audit/002.jpg"))[200, 250].astype(int)
    assert label[1] > 150 > label[2]  # a green edge
    teacher = cv2.imread(str(tmp_path / "out" / "audit/000.jpg"))[200, 250].astype(int)
    assert teacher[2] > 200 > teacher[0]  # an orange one


def test_what_a_teacher_often_overlooks_it_cannot_doubt(tmp_path: Path) -> None:
    often = [real(tmp_path, f"{i}.png", [], [(A, 1)]) for i in range(3)]
    assert [e["score"] for e in audit(often, NAMES, tmp_path / "out")] == [0.05] * 3


def test_no_more_than_asked_for_and_equal_reasons_together(tmp_path: Path) -> None:
    images = [real(tmp_path, f"{i}.png", [], [(A, 1), (B, 1)]) for i in range(4)]
    entries = audit(images, NAMES, tmp_path / "out", top=2)
    assert [e["file"] for e in entries] == ["test/0.png", "test/1.png"]
    assert entries[0]["reason"] == "2 x nothing seen at a labelled shark"
    assert len(list((tmp_path / "out" / "audit").iterdir())) == 2


def test_nothing_to_say_and_nothing_to_draw(tmp_path: Path) -> None:
    assert audit([image(found=[(A, 0.9, 0)], truth=[(A, 0)])], NAMES, tmp_path) == []
    gone = image("gone.jpg", [(A, 0.9, 0)], [])
    here = real(tmp_path, "here.png", [(A, 0.8, 0)], [])
    (entry,) = audit([gone, here], NAMES, tmp_path)
    assert (entry["image"], entry["file"]) == ("audit/000.jpg", "test/here.png")
