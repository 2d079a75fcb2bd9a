"""Which images without labels a run learns from, and which it must not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolokd.compat.dataset import check_data, image_files
from yolokd.errors import UserError
from yolokd.image_config import ImageConfig
from yolokd.unlabelled import LEFT_OUT, LIST, collect, read_list


def picture(file: Path, seed: int, size: tuple[int, int] = (96, 128)) -> Path:
    """Large patches of random brightness: no two are alike."""
    rng = np.random.default_rng(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(file), cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
    return file


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    for i, split in enumerate(("train", "val", "test")):
        for k in range(2):
            picture(tmp_path / f"set/images/{split}/{k}.png", 10 * i + k)
        (tmp_path / f"set/labels/{split}").mkdir(parents=True)
    (tmp_path / "set/labels/train/0.txt").write_text("0 .5 .5 .2 .2\n")
    file = tmp_path / "set/data.yaml"
    file.write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [a]\n")
    return check_data(str(file))


def asked(*folders: Path | str, **more: Any) -> ImageConfig:
    return ImageConfig(unlabelled=tuple(map(str, folders)), **more)


def test_those_that_nearly_judge_are_left_out_and_counted(data: dict[str, Any], tmp_path: Path) -> None:
    fresh = [picture(tmp_path / f"more/{i}.png", 50 + i) for i in range(3)]
    judging = image_files(data, "val")[0], image_files(data, "test")[1]
    for name, file in zip(("again.jpg", "mirror.png"), judging, strict=True):
        image = cv2.imread(file)
        cv2.imwrite(str(tmp_path / "more" / name), image if name == "again.jpg" else image[:, ::-1])
    found = collect(asked(tmp_path / "more"), data)
    assert list(found.files) == sorted(map(str, fresh))
    assert {Path(a).name: b for a, b in found.twins} == {"again.jpg": judging[0], "mirror.png": judging[1]}
    assert any("2 more are left out: they nearly equal images that judge" in line for line in found.lines)


def test_what_cannot_be_read_is_listed(data: dict[str, Any], tmp_path: Path) -> None:
    fine = picture(tmp_path / "more/fine.png", 60)
    (tmp_path / "more/broken.jpg").write_text("no image")
    found = collect(asked(tmp_path / "more"), data)
    assert found.files == (str(fine),)
    assert [Path(file).name for file in found.unreadable] == ["broken.jpg"]
    assert any(line.startswith("WARNING: 1 cannot be read") and "broken.jpg" in line for line in found.lines)
    listed = found.write(tmp_path)
    assert (listed, read_list(tmp_path)) == (tmp_path / LIST, [str(fine)])
    with (tmp_path / LEFT_OUT).open() as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["image"]).name, row["why"]) for row in rows] == [("broken.jpg", "cannot be read")]


def test_labelled_training_images_are_not_taken_twice(data: dict[str, Any], tmp_path: Path) -> None:
    fine = picture(tmp_path / "more/fine.png", 61)
    (tmp_path / "set/labels/train/1.txt").write_text("")  # said to hold nothing
    found = collect(asked(tmp_path / "more", data["train"]), data)
    assert found.files == (str(fine),)
    assert list(found.labelled) == image_files(data, "train")
    assert any("2 more are left out: they are labelled" in line for line in found.lines)
    only_val = {**data, "train": None}  # nobody learns from their labels
    assert len(collect(asked(tmp_path / "more", data["train"]), only_val).files) == 3


def test_training_images_that_lost_their_label_file_are_taken(data: dict[str, Any], tmp_path: Path) -> None:
    """train/1 has no label file: Ultralytics would call it background. Beyond fraction= nobody reads the labels."""
    found = collect(asked(data["train"]), data)
    assert [Path(file).name for file in found.files] == ["1.png"]
    (tmp_path / "set/labels/train/1.txt").write_text("0 .5 .5 .2 .2\n")
    with pytest.raises(UserError, match="all are labelled training images"):
        collect(asked(data["train"]), data)
    assert [Path(file).name for file in collect(asked(data["train"]), data, fraction=0.5).files] == ["1.png"]


def test_what_has_gone_since_is_passed_over(data: dict[str, Any], tmp_path: Path) -> None:
    fine = [picture(tmp_path / f"more/{i}.png", 70 + i) for i in range(2)]
    collect(asked(tmp_path / "more"), data).write(tmp_path)
    fine[0].unlink()
    assert read_list(tmp_path) == [str(fine[1])]


def test_a_link_to_a_validation_image_is_that_image(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/x.png").symlink_to(image_files(data, "val")[0])
    with pytest.raises(UserError, match="the images that judge"):
        collect(asked(tmp_path / "links"), data)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("empty", "unlabelled="),
        ("missing", "unlabelled="),
        ("unreadable", "none of its 1 images can be read"),
        ("validation", "holds the images that judge"),
        ("copies", "none of its 2 images is left"),
    ],
)
def test_bad_folders(data: dict[str, Any], tmp_path: Path, case: str, problem: str) -> None:
    folder = tmp_path / case
    if case == "validation":
        folder = Path(data["val"])
    elif case != "missing":
        folder.mkdir()
    if case == "unreadable":
        (folder / "a.png").write_text("no image")
    if case == "copies":
        for file in image_files(data, "test"):
            (folder / Path(file).name).write_bytes(Path(file).read_bytes())
    with pytest.raises(UserError) as caught:
        collect(asked(folder), data)
    assert problem in caught.value.problem
    assert caught.value.remedy


def video(file: Path, frames: int = 30, fps: int = 10) -> Path:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), fps, (128, 96))
    for i in range(frames):
        writer.write(cv2.imread(str(picture(file.with_suffix(".png"), 100 + i // 10))))
    writer.release()
    file.with_suffix(".png").unlink()
    return file


def test_a_video_has_no_partners(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a video"):
        collect(asked(video(tmp_path / "film.avi"), teacher_images="rgb"), data)


def test_a_video_is_only_looked_at_before_the_run_folder_exists(data: dict[str, Any], tmp_path: Path) -> None:
    film = video(tmp_path / "film.avi")
    before = sorted(tmp_path.rglob("*"))
    assert collect(asked(film), data).files == ()
    assert sorted(tmp_path.rglob("*")) == before
    found = collect(asked(film, unlabelled_seconds=1.0), data, tmp_path / "frames")
    assert len(found.files) == 3
    assert collect(asked(film, unlabelled_seconds=0.5), data, tmp_path / "frames2").files != found.files
