from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolokd.evaluation.report.pictures import encode


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[:, 100:] = (220, 30, 30)
    Image.fromarray(pixels).save(file)
    return file


def test_a_picture_keeps_its_shape_and_its_colours(photo: Path) -> None:
    picture = encode(photo, 80, 90)
    assert picture is not None
    assert (picture.width, picture.height) == (80, 40)
    head, _, data = picture.uri.partition(",")
    assert head == "data:image/jpeg;base64"
    inside = Image.open(io.BytesIO(base64.b64decode(data)))
    assert inside.size == (80, 40)
    assert np.abs(np.asarray(inside)[20, 60].astype(int) - (220, 30, 30)).max() < 12
    assert np.asarray(inside)[20, 10].max() < 12


def test_a_small_picture_is_not_blown_up(photo: Path) -> None:
    picture = encode(photo, 640, 80)
    assert picture is not None
    assert picture.width == 200


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_any_mode_becomes_a_jpeg(tmp_path: Path, photo: Path, mode: str) -> None:
    file = tmp_path / f"other.{'tif' if mode == 'CMYK' else 'png'}"
    Image.open(photo).convert(mode).save(file)
    assert encode(file, 100, 80) is not None


def test_what_is_no_picture_is_none(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "torn.png").write_bytes(photo.read_bytes()[:20])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    for name in ("torn.png", "text.jpg", "empty.jpg", "missing.jpg", "."):
        assert encode(tmp_path / name, 100, 80) is None
