from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolokd.evaluation.pictures import Frame, picture, save_picture

RED, BLUE = (0, 0, 255), (255, 0, 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """1280 x 640, grey, its left half green."""
    image = np.full((640, 1280, 3), 100, np.uint8)
    image[:, :640] = (0, 200, 0)
    cv2.imwrite(str(tmp_path / "large.png"), image)
    return tmp_path / "large.png"


def test_boxes_lie_where_they_lay_in_the_large_image(file: Path) -> None:
    drawn = picture(file, [Frame(np.array([200.0, 100.0, 1000.0, 600.0]), RED)])
    assert drawn is not None
    assert drawn.shape == (320, 640, 3)
    assert drawn[10, 10].tolist() == [0, 200, 0]
    assert drawn[10, 600].tolist() == [100, 100, 100]
    rows, columns = np.nonzero((drawn == RED).all(2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (100, 50, 500, 300)


def test_a_thick_box_covers_a_thin_one_and_its_text_is_inside_the_picture(file: Path) -> None:
    box = np.array([1240.0, 0.0, 1279.0, 60.0])
    plain = picture(file, [Frame(box, RED), Frame(box, BLUE, thick=True)])
    with_text = picture(file, [Frame(box, RED), Frame(box, BLUE, "12", thick=True)])
    assert plain is not None
    assert with_text is not None
    assert not (plain == RED).all(2).any()
    assert (with_text == BLUE).all(2).sum() > (plain == BLUE).all(2).sum()


def test_a_caption_is_broken_into_lines_below(file: Path) -> None:
    one = picture(file, [], "short")
    three = picture(file, [], "a long caption of many words, " * 7)
    assert one is not None
    assert three is not None
    assert 320 < one.shape[0] < three.shape[0]
    assert (three[:, -4:][320:] == (32, 32, 32)).all()  # no letter runs over the edge
    assert (three[320:] > 200).any()
    picture(file, [], "große Fische 魚 " + "x" * 300)


def test_a_small_image_is_enlarged(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "small.jpg"), np.zeros((50, 40, 3), np.uint8))
    drawn = picture(tmp_path / "small.jpg", [])
    assert drawn is not None
    assert drawn.shape == (640, 512, 3)


def test_no_image_is_no_picture(tmp_path: Path) -> None:
    assert picture(tmp_path / "none.jpg", []) is None
    (tmp_path / "text.jpg").write_text("no image")
    assert picture(tmp_path / "text.jpg", []) is None


def test_saved_as_jpeg(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.jpg", np.full((20, 30, 3), 77, np.uint8))
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (20, 30, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]
