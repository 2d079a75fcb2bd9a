"""Which images are shown, and what is drawn on them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from tests.evaluation.judged import IMAGES, NAMES, begin, found
from tests.evaluation.results import Box, image
from yolokd.compat.validation import ImageResult
from yolokd.evaluation import examples as module
from yolokd.evaluation.examples import choose, examples
from yolokd.evaluation.pictures import Frame

BOX: Box = (10, 10, 40, 30)


def labelled(*classes: int) -> ImageResult:
    return image(truth=[(BOX, label) for label in classes])


def test_spread_over_the_classes_by_the_labels_alone() -> None:
    images = [labelled(0) for _ in range(50)] + [labelled(1), labelled(2, 0), labelled(0, 3), labelled()]
    chosen = choose(images)
    assert len(chosen) == len(set(chosen)) == 8
    assert chosen == sorted(chosen)
    assert {50, 51, 52} < set(chosen)  # the only ones of classes 1, 2, 3
    assert 53 not in chosen  # empty
    seen = [replace(one, boxes=one.true_boxes, scores=one.boxes[:, 0]) for one in images]
    assert choose(seen) == chosen == choose(images)


def test_every_class_has_its_turn() -> None:
    images = [labelled(k % 4) for k in range(100)]
    assert sorted(k % 4 for k in choose(images)) == [0, 0, 1, 1, 2, 2, 3, 3]
    many = [labelled(k % 20) for k in range(100)]
    assert len({k % 20 for k in choose(many)}) == 8


@pytest.mark.parametrize("count", range(4))
def test_no_more_than_there_are(count: int) -> None:
    images = [labelled()] * 5 + [labelled(0)] * count
    random.seed(count)  # nobody's business
    assert choose(images) == list(range(5, 5 + count))


def test_drawn_under_labels_and_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    drawn: list[tuple[str, list[tuple[list[float], str]]]] = []
    picture = module.picture

    def overheard(file: Path, frames: list[Frame]) -> object:
        drawn.append((file.name, [(frame.box.tolist(), frame.text) for frame in frames]))
        return picture(file, frames)

    monkeypatch.setattr(module, "picture", overheard)
    (tmp_path / "shown").mkdir()
    judged = {"plain": found(tmp_path, range(5), score=0.24), "yolokd": found(tmp_path, range(IMAGES), score=0.256)}
    entries = examples(judged, NAMES, tmp_path, "shown")
    assert len(entries) == 8
    assert entries[0]["images"] == {k: f"shown/0-{k}.jpg" for k in ("truth", "plain", "yolokd")}
    assert len({entry["file"] for entry in entries}) == 8
    corners = list(map(float, BOX))
    for entry, parts in zip(entries, zip(*[iter(drawn)] * 3, strict=True), strict=True):
        assert parts == (
            (entry["file"], [(corners, "cat")]),
            (entry["file"], []),  # not sure enough
            (entry["file"], [(corners, "cat 0.26")]),
        )
        for path in entry["images"].values():
            assert max(cv2.imread(str(tmp_path / path)).shape) == 640


def test_the_surest_box_lies_above() -> None:
    twice = image(found=[(BOX, 0.9, 1), ((0, 0, 5, 5), 0.5, 0)])
    frames = module._frames(twice.boxes, twice.classes, NAMES, twice.scores)
    assert [frame.text for frame in frames] == ["cat 0.50", "dog 0.90"]
    assert frames[0].colour != frames[1].colour


def test_an_image_that_is_gone_is_left_out(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "shown").mkdir()
    judged = {"plain": found(tmp_path, range(IMAGES))}
    first = examples(judged, NAMES, tmp_path, "shown")[0]["file"]
    (tmp_path / "images" / first).unlink()
    entries = examples(judged, NAMES, tmp_path, "shown")
    assert len(entries) == 7
    assert [entry["images"]["plain"] for entry in entries] == [f"shown/{i}-plain.jpg" for i in range(7)]
    assert first not in {entry["file"] for entry in entries}
