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
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset

from yolokd.compat import dataset
from yolokd.compat.dataset import check_data, image_files, sample_images, used_files
from yolokd.errors import UserError


def refusal(call: Callable[[], Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def make(root: Path, images: int = 2, labels: bool = True, **changes: Any) -> Path:
    """A data YAML with 10 x 20 images, each pixel of image i being (B, G, R) = (10 i, 100, 200)."""
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(images):
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), np.full((10, 20, 3), (10 * i, 100, 200), np.uint8))
            if labels:
                (root / "labels" / split / f"{i}.txt").write_text("0 .5 .5 .2 .2\n")
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": {0: "thing"}, **changes}
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def everything(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_a_good_data_set_is_resolved_and_left_alone(tmp_path: Path) -> None:
    file = make(tmp_path)
    before = everything(tmp_path)
    data = check_data(str(file))
    assert data["names"] == {0: "thing"}
    assert data["channels"] == 3
    assert [Path(f).name for f in image_files(data, "train")] == ["0.png", "1.png"]
    sample_images(data, "train", imgsz=32, n=2)
    assert everything(tmp_path) == before  # no label cache


@pytest.mark.parametrize(
    ("changes", "splits", "said"),
    [
        ({"images": 0}, (), "the split train has no images"),
        ({"labels": False}, (), "none of the 2 training images has a label"),
        ({"train": "images/nowhere"}, (), "the split train has no images"),
        ({"val": "images/nowhere"}, (), "is missing"),
        ({"val": None}, (), "'val:' key missing"),
        ({}, ("test",), "has no split test"),
        ({"names": None}, (), "'names' or 'nc'"),
        ({"names": {0: "a", 5: "b"}}, (), "class indices"),
        ({"names": ["a"], "nc": 3}, (), "must match"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], splits: tuple[str, ...], said: str) -> None:
    file = make(tmp_path, **changes)
    error = refusal(lambda: check_data(str(file), *splits))
    assert said in error.problem
    assert str(file) in error.problem


def test_files_that_are_no_data_set() -> None:
    assert "no such file" in refusal(lambda: check_data("nowhere.yaml")).problem
    assert "data= is missing" in refusal(lambda: check_data(None)).problem
    assert "not one data set" in refusal(lambda: check_data(["a.yaml", "b.yaml"])).problem


def test_a_malformed_yaml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("names: [a\n")
    assert str(file) in refusal(lambda: check_data(str(file))).problem


def test_offline_a_download_is_refused_before_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset.utils, "ONLINE", False)
    for step in ("https://example.com/data.zip", "from ultralytics.utils.downloads import download\nraise SystemExit"):
        root = tmp_path / str(len(step))
        file = make(root, val="images/gone", download=step)
        assert "no connection" in refusal(lambda file=file: check_data(str(file))).problem


def test_a_step_that_needs_no_network_makes_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset.utils, "ONLINE", False)
    step = "import shutil\nshutil.copytree(yaml['path'] / 'images/train', yaml['path'] / 'images/made')"
    data = check_data(str(make(tmp_path, val="images/made", download=step)))
    assert len(image_files(data, "val")) == 2


def test_a_list_of_files_is_read(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "list.txt").write_text("./images/train/1.png\n./images/train/notes.md\n")
    assert image_files({"train": str(tmp_path / "list.txt")}, "train") == [str(tmp_path / "images/train/1.png")]


def test_samples_are_letterboxed_rgb_in_0_to_1(tmp_path: Path) -> None:
    images = sample_images(check_data(str(make(tmp_path))), "train", imgsz=32, n=2)
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.float32
    assert torch.allclose(images[:, :, 0, 0], torch.tensor(114 / 255))  # the padding above
    assert torch.allclose(images[1, :, 16, 16], torch.tensor([200, 100, 10]) / 255)


def test_samples_are_spread_and_broken_files_passed_over(tmp_path: Path) -> None:
    data = check_data(str(make(tmp_path, images=10)))
    blue = sample_images(data, "train", imgsz=32, n=2)[:, 2, 16, 16] * 255
    assert blue.round().tolist() == [0, 50]
    (tmp_path / "images/train/5.png").write_bytes(b"broken")
    assert len(sample_images(data, "train", imgsz=32, n=2)) == 2
    for file in (tmp_path / "images/train").iterdir():
        file.write_bytes(b"broken")
    assert "can be read" in refusal(lambda: sample_images(data, "train", imgsz=32, n=2)).problem


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    data = check_data(str(make(tmp_path, channels=1)))
    assert sample_images(data, "train", imgsz=32, n=1).shape == (1, 1, 32, 32)


def ultralytics_takes(data: dict[str, Any], **settings: Any) -> list[str]:
    args = get_cfg(overrides={"imgsz": 32, "task": "detect", **settings})
    return list(build_yolo_dataset(args, data["train"], 4, data, mode="train").im_files)


def test_images_are_listed_as_ultralytics_lists_them(tmp_path: Path) -> None:
    """Without hidden files and folders, through links to folders, with odd names, and from a list with blanks in it."""
    data = check_data(str(make(tmp_path / "a [1]", images=3)))
    images = tmp_path / "a [1]" / "images" / "train"
    shutil.move(images / "1.png", tmp_path / "1.png")
    (images / "._0.png").write_bytes(b"of a Mac")
    (images / ".hidden").mkdir()
    shutil.copy(images / "0.png", images / ".hidden")
    for kind in ("images", "labels"):
        (tmp_path / "real" / kind).mkdir(parents=True)
        (tmp_path / "a [1]" / kind / "train" / "sub").symlink_to(tmp_path / "real" / kind, target_is_directory=True)
    shutil.copy(tmp_path / "1.png", tmp_path / "real" / "images" / "linked.PNG")
    assert [Path(file).name for file in image_files(data, "train")] == ["0.png", "2.png", "linked.PNG"]
    assert image_files(data, "train") == ultralytics_takes(data)
    lines = "\ufeff./a [1]/images/train/2.png", f"{images}/2.png ", "", f"{images}/0.png", ""
    (tmp_path / "list.txt").write_text("\n".join(lines), "utf-8")
    listed = {**data, "train": str(tmp_path / "list.txt")}
    assert image_files(listed, "train") == ultralytics_takes(listed)
    assert [Path(file).name for file in image_files(listed, "train")] == ["0.png", "2.png"]


@pytest.mark.parametrize("fraction", [1.0, 1, 0.5, 0.01, 3, 99, [0.5, 1.0], [2, 1], [1, 0.5], [0.3, 0.3, 0]])
def test_a_fraction_is_taken_as_ultralytics_takes_it(tmp_path: Path, fraction: Any) -> None:
    data = check_data(str(make(tmp_path, images=5)))
    assert used_files(image_files(data, "train"), fraction) == ultralytics_takes(data, fraction=fraction)
    assert used_files(image_files(data, "train"), None) == ultralytics_takes(data)
