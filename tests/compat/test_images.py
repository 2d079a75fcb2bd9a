from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from yolokd.compat.images import read_letterboxed


def picture(file: Path, height: int, width: int) -> Path:
    rng = np.random.default_rng(height * width)
    image = cv2.resize(rng.integers(0, 100, (7, 9, 3), dtype=np.uint8), (width, height))  # nowhere 114, the border
    cv2.imwrite(str(file), image)
    return file


@pytest.mark.parametrize(
    ("height", "width"), [(97, 131), (131, 97), (333, 500), (500, 333), (64, 64), (31, 20), (10, 300)]
)
@pytest.mark.parametrize("imgsz", [64, 160])
def test_the_image_is_what_the_data_set_reads(tmp_path: Path, height: int, width: int, imgsz: int) -> None:
    file = picture(tmp_path / "a.png", height, width)
    dataset = YOLODataset(
        img_path=str(tmp_path), data={"names": {0: "a"}, "channels": 3}, task="detect",
        imgsz=imgsz, augment=False, rect=False, hyp=get_cfg(), cache=False,
    )  # fmt: skip
    sample = dataset[0]
    boxed = read_letterboxed(file, imgsz)
    assert boxed is not None
    assert torch.equal(boxed.image, sample["img"])
    assert boxed.shape == sample["ori_shape"] == (height, width)
    assert (boxed.pad[1], boxed.pad[0]) == tuple(sample["ratio_pad"][1])


@pytest.mark.parametrize(("height", "width"), [(97, 131), (500, 333), (31, 20), (10, 300)])
def test_it_lies_where_it_says(tmp_path: Path, height: int, width: int) -> None:
    boxed = read_letterboxed(picture(tmp_path / "a.png", height, width), 96)
    assert boxed is not None
    (top, left), (h, w) = boxed.pad, boxed.resized
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[top : top + h, left : left + w] = True
    assert (boxed.image[:, ~inside] == 114).all()
    assert (boxed.image[:, inside] != 114).all()
    assert max(h, w) == 96


def test_one_channel(tmp_path: Path) -> None:
    boxed = read_letterboxed(picture(tmp_path / "a.png", 40, 50), 64, channels=1)
    assert boxed is not None
    assert boxed.image.shape == (1, 64, 64)


def test_an_npy_beside_the_image_is_not_read(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 40, 50)
    first = read_letterboxed(file, 64)
    np.save(tmp_path / "a.npy", np.zeros((40, 50, 3), np.uint8))
    second = read_letterboxed(file, 64)
    assert first is not None
    assert second is not None
    assert torch.equal(first.image, second.image)


def test_what_is_no_image_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert read_letterboxed(tmp_path / "a.jpg", 64) is None
    assert read_letterboxed(tmp_path / "missing.jpg", 64) is None
