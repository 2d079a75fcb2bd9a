"""Data sets of which a part is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ultralytics.data.utils import check_det_dataset

from tests.photos import changed
from yolokd.compat.dataset import image_files
from yolokd.compat.open_data import (
    OWN_NAMES,
    complete_yaml,
    in_students_classes,
    names_nothing,
    open_data,
    refuse_unknown_classes,
)
from yolokd.errors import UserError


def test_a_whole_data_set_is_as_ultralytics_has_it(toy_data: Path) -> None:
    found = open_data(str(toy_data))
    expected = check_det_dataset(str(toy_data))
    assert {key: found[key] for key in expected} == expected
    assert found[OWN_NAMES] == found["names"]


@pytest.mark.parametrize("missing", ["no key", "no label", "null"])
def test_train_may_be_missing_where_there_are_images_without_labels(
    toy_data: Path, tmp_path: Path, missing: str
) -> None:
    (tmp_path / "bare/images").mkdir(parents=True)
    first = Path(image_files(check_det_dataset(str(toy_data)), "train")[0])
    (tmp_path / "bare/images/a.png").write_bytes(first.read_bytes())
    train = {"no key": None, "no label": str(tmp_path / "bare/images"), "null": None}[missing]
    file = changed(toy_data, tmp_path, train=train)
    if missing == "null":
        file.write_text(file.read_text() + "train:\n")
    before = sorted(tmp_path.rglob("*"))
    found = open_data(str(file), unlabelled=True)
    assert found["train"] is None
    assert len(image_files(found, "val")) == 4
    assert found["names"] == {0: "red", 1: "green", 2: "blue"}
    assert found["yaml_file"] == str(file)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError):
        open_data(str(file))


def test_a_path_of_its_own_is_kept(toy_data: Path, tmp_path: Path) -> None:
    """A YAML without train and without path: lies beside its images."""
    file = toy_data.parent / "without.yaml"
    file.write_text(yaml.safe_dump({"val": "images/val", "names": ["red", "green", "blue"]}))
    assert len(image_files(open_data(str(file), unlabelled=True), "val")) == 4
    file.unlink()


def test_no_data_at_all_needs_classes_and_no_validation() -> None:
    found = open_data(None, unlabelled=True, classes=("person", "car"), val=False)
    assert (found["names"], found["nc"], found["train"], found["val"]) == ({0: "person", 1: "car"}, 2, None, None)
    for how in ({"classes": ("person",)}, {"val": False}, {}):
        with pytest.raises(UserError, match="data= is missing"):
            open_data(None, unlabelled=True, **how)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="data= is missing"):
        open_data(None, classes=("person",), val=False)


def test_the_students_classes_replace_those_of_the_data(toy_data: Path) -> None:
    found = open_data(str(toy_data), classes=("blue", "red"))
    assert found["names"] == {0: "blue", 1: "red"}
    assert found[OWN_NAMES] == {0: "red", 1: "green", 2: "blue"}

    class Set:
        def __init__(self) -> None:
            self.labels: list[Any] = LABELS

    LABELS: list[Any] = [
        {
            "cls": np.array([[0.0], [1.0], [2.0]], np.float32),
            "bboxes": np.array([[0.0] * 4, [0.1] * 4, [0.2] * 4], np.float32),
            "segments": [np.zeros((3, 2)), np.ones((3, 2)), np.full((3, 2), 2.0)],
        },
        {"cls": np.zeros((0, 1), np.float32), "bboxes": np.zeros((0, 4), np.float32), "segments": []},
    ]

    moved = in_students_classes(Set(), found)
    assert moved.labels[0]["cls"].tolist() == [[1.0], [0.0]]
    np.testing.assert_allclose(moved.labels[0]["bboxes"][:, 0], [0.0, 0.2], rtol=1e-6)
    assert [segment[0, 0] for segment in moved.labels[0]["segments"]] == [0.0, 2.0]
    assert moved.labels[1]["cls"].shape == (0, 1)


def test_labels_that_speak_of_the_students_classes_already_stay(toy_data: Path) -> None:
    kept = object()
    assert in_students_classes(kept, open_data(str(toy_data))) is kept


def test_a_yaml_that_ultralytics_reads_is_written_only_where_one_is_missing(toy_data: Path, tmp_path: Path) -> None:
    assert complete_yaml(open_data(str(toy_data)), "val", tmp_path / "d.yaml") == toy_data
    assert not (tmp_path / "d.yaml").exists()
    part = open_data(str(changed(toy_data, tmp_path, train=None)), unlabelled=True)
    file = complete_yaml(part, "val", tmp_path / "d.yaml")
    written = check_det_dataset(str(file))
    assert written["names"] == part["names"]
    assert image_files(written, "val") == image_files(part, "val")
    again = open_data(str(file), unlabelled=True)  # as a run that is resumed does
    assert (again["train"], image_files(again, "val")) == (None, image_files(part, "val"))


def test_a_run_without_data_is_resumed_from_what_it_wrote(tmp_path: Path) -> None:
    none = open_data(None, unlabelled=True, classes=("person",), val=False)
    file = complete_yaml(none, "val", tmp_path / "e.yaml")
    again = open_data(str(file), unlabelled=True, classes=("person",), val=False)
    assert {key: again[key] for key in ("names", "train", "val", "channels")} == {
        "names": {0: "person"}, "train": None, "val": None, "channels": 3
    }  # fmt: skip


def test_a_validation_split_is_not_lost_where_it_is_not_used_in_between(toy_data: Path, tmp_path: Path) -> None:
    part = open_data(str(changed(toy_data, tmp_path, train=None)), unlabelled=True, val=False)
    file = complete_yaml(part, "val", tmp_path / "d.yaml")
    again = open_data(str(file), unlabelled=True, val=False)
    assert image_files(again, "val") == image_files(part, "val") != []
    assert not names_nothing(file, "val")
    assert names_nothing(complete_yaml({**part, "val": None}, "val", tmp_path / "f.yaml"), "val")


def test_classes_that_nobody_knows_are_named() -> None:
    coco = {0: "person", 1: "motorcycle"}
    refuse_unknown_classes(("Person", "motorbike"), [coco])
    refuse_unknown_classes(("person", "fish"), [coco, {0: "fish"}])
    refuse_unknown_classes(("human being",), [coco, {0: "fish"}], {"person": "human being"})
    with pytest.raises(UserError) as caught:
        refuse_unknown_classes(("person", "fish"), [coco])
    assert "know fish" in caught.value.problem
    assert "person" in caught.value.remedy
