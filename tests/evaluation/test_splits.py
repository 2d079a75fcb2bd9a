"""Which images judge, and that training never sees them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ultralytics.data.dataset import YOLODataset

from yolokd.compat.dataset import check_data, image_files
from yolokd.compat.labels import classes_in, label_texts
from yolokd.errors import UserError
from yolokd.evaluation.splits import EVERY, EvalSplit, choose_split, data_files, divide, write_held_out


def make_set(root: Path, train: list[str], **more: Any) -> Path:
    """A data YAML whose training images have these label texts; the images are empty files."""
    for split, texts in {"train": train, "val": [label(0)], "unseen": [label(1)], "bare": [""]}.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i, text in enumerate(texts):
            (root / "images" / split / f"{i:03}.jpg").touch()
            (root / "labels" / split / f"{i:03}.txt").write_text(text)
    file = root / "data.yaml"
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": {0: "a", 1: "b", 2: "c"}}
    file.write_text(yaml.safe_dump({**content, **more}))
    return file


def label(*classes: int) -> str:
    return "\n".join(f"{c} .5 .5 .1 .1" for c in classes)


def test_a_fifth_is_held_out_and_of_every_class_a_fifth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [label(*([2] * (i < 10)), *([1] * (i % 5 == 0)), 0) for i in range(200)] + [""] * 25
    texts = [texts[i] for i in rng.permutation(len(texts))]
    data = check_data(make_set(tmp_path, texts))
    files = image_files(data, "train")
    judging, training = divide(files)
    assert sorted([*judging, *training]) == files
    assert len(judging) == len(files) // EVERY

    def count(names: list[str]) -> Counter[int]:
        return Counter(c for text in label_texts(names) for c in classes_in(text) or {-1})

    whole, part = count(files), count(judging)
    for c in (2, 1, 0, -1):  # 10, 40, 200 images, and 25 without an object
        assert part[c] == pytest.approx(whole[c] / EVERY, abs=1.01)
    assert divide(files[::-1]) == (judging, training)  # whatever order they come in


def test_what_is_written_trains_without_the_images_that_judge(tmp_path: Path, toy_data: Path) -> None:
    split, _ = choose_split(toy_data)
    assert (split.split, split.held_out) == ("test", True)
    assert "has no split test: 2 of its 8 training images judge" in split.note
    write_held_out(split, tmp_path)
    data = check_data(split.yaml(tmp_path), "train", "val", "test")
    whole = check_data(toy_data)
    train, test = (set(image_files(data, part)) for part in ("train", "test"))
    assert not train & test
    assert train | test == set(image_files(whole, "train"))
    assert image_files(data, "val") == image_files(whole, "val")
    assert data["names"] == whole["names"]
    # What Ultralytics itself reads of it.
    read = YOLODataset(img_path=data["train"], data=data, imgsz=64)
    assert set(read.im_files) == train
    before = (tmp_path / "data.yaml").stat().st_mtime_ns
    write_held_out(split, tmp_path)
    assert (tmp_path / "data.yaml").stat().st_mtime_ns == before


def test_a_test_split_is_taken_as_it_is(tmp_path: Path) -> None:
    file = make_set(tmp_path, [label(0)] * 9, test="images/unseen")
    split, _ = choose_split(file)
    assert split == EvalSplit(str(file), "test")
    write_held_out(split, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert split.yaml(tmp_path / "run") == str(file)


def test_judging_images_that_training_saw(tmp_path: Path) -> None:
    both = choose_split(make_set(tmp_path / "a", [label(0)] * 9, test=["images/unseen", "images/val"]))[0]
    assert both.note.startswith("judged on test, of whose 2 images 1 are in val; val also chose the epoch of best.pt")
    for name in ("test", "val"):
        file = make_set(tmp_path / name, [label(0)] * 9, **{name: ["images/train", "images/unseen"]})
        with pytest.raises(UserError, match=f"eval_split={name}: 9 of its 10 images are training images"):
            choose_split(file, name)


def test_a_test_split_without_labels_is_none(tmp_path: Path) -> None:
    split, _ = choose_split(make_set(tmp_path, [label(0)] * 10, test="images/bare"))
    assert split.held_out
    assert split.note.startswith("the split test of data.yaml has no labels: 2 of its 10 training images judge")
    (tmp_path / "run").mkdir()
    write_held_out(split, tmp_path / "run")
    data = check_data(split.yaml(tmp_path / "run"), "train", "val", "test")
    assert [len(image_files(data, part)) for part in ("train", "val", "test")] == [8, 1, 2]


def test_what_is_held_out_does_not_choose_best_pt(tmp_path: Path) -> None:
    split, _ = choose_split(make_set(tmp_path, [label(0)] * 10, val="images/train"))
    (tmp_path / "run").mkdir()
    write_held_out(split, tmp_path / "run")
    data = check_data(split.yaml(tmp_path / "run"), "train", "val", "test")
    assert image_files(data, "val") == image_files(data, "train")
    assert not set(image_files(data, "val")) & set(image_files(data, "test"))


def test_val_is_allowed_and_said_to_be_optimistic(toy_data: Path) -> None:
    split, _ = choose_split(toy_data, "val")
    assert (split.split, split.held_out) == ("val", False)
    assert "a little too good" in split.note


@pytest.mark.parametrize(
    ("asked", "words"),
    [("train", "have trained on these images"), ("tets", "eval_split=tets is not a split"), ("minival", None)],
)
def test_other_splits(toy_data: Path, asked: str, words: str | None) -> None:
    if words is None:  # one that Ultralytics knows and this data has not
        assert choose_split(toy_data, asked)[0].held_out
        return
    with pytest.raises(UserError, match=words):
        choose_split(toy_data, asked)


def test_a_test_split_that_is_named_but_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images/test'? is missing"):
        choose_split(make_set(tmp_path, [label(0)] * 9, test="images/test"))


@pytest.mark.parametrize("texts", [[label(0)] * 2, [label(0)] + [""] * 8])
def test_too_little_to_hold_out(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(UserError, match="training images are too few to hold some out"):
        choose_split(make_set(tmp_path, texts))


def test_another_label_or_image_is_other_data(tmp_path: Path) -> None:
    file = make_set(tmp_path, [label(0)] * 9)

    def digests() -> dict[str, str]:
        return data_files(*choose_split(file))

    before = digests()
    assert [name.partition(", ")[2] for name in before] == [
        "",
        "train: names and labels of 9 images",
        "val: names and labels of 1 images",
    ]
    (tmp_path / "images" / "train" / "000.jpg").write_text("mended")
    assert digests() == before
    (tmp_path / "labels" / "train" / "000.txt").write_text(label(1))
    changed = digests()
    assert {name for name in before if changed.get(name) != before[name]} == {
        "data.yaml, train: names and labels of 9 images"
    }
    (tmp_path / "images" / "val" / "000.jpg").rename(tmp_path / "images" / "val" / "001.jpg")
    assert digests() != changed
