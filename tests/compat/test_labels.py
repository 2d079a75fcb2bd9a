from __future__ import annotations

from pathlib import Path

import pytest

from yolokd.compat.labels import classes_in, label_texts


def test_labels_are_found_where_ultralytics_looks(toy_data: Path) -> None:
    images = [str(toy_data.parent / "images" / "train" / name) for name in ("0.png", "7.png", "none.png")]
    texts = label_texts(images)
    assert texts[0] == (toy_data.parent / "labels" / "train" / "0.txt").read_text()
    assert texts[1:] == ["", ""]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("", set()),
        ("1 0 0 1 1\n\n1 0 0 1 1\n3 .1 .2 .3 .4 .5 .6", {1, 3}),
        ("2.0 0 0 1 1", {2}),
        ("x y\n0 1 1 1 1", {0}),
    ],
)
def test_classes(text: str, classes: set[int]) -> None:
    assert classes_in(text) == classes
