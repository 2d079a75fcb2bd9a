"""Each image finds the one of the same scene, or it is said which do not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolokd.data.paired import find_partners
from yolokd.errors import UserError

SIZE = (12, 8)  # width, height


def draw(root: Path, *places: str, size: tuple[int, int] = SIZE, mode: str = "RGB") -> list[str]:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(root / place)
    return [str(root / place) for place in places]


def found(files: Sequence[str], folder: Path, channels: int = 3) -> list[str]:
    """The partners by their place in the folder."""
    partners = find_partners(files, folder, channels)
    assert list(partners) == list(dict.fromkeys(files))
    return [Path(partner).relative_to(folder).as_posix() for partner in partners.values()]


@pytest.mark.parametrize(
    ("images", "there", "wanted"),
    [
        pytest.param(["a.png", "b.png"], ["a.jpg", "b.tiff", "c.png"], ["a.jpg", "b.tiff"], id="any ending"),
        pytest.param(["train/a.png", "val/b.png"], ["a.png", "b.png"], ["a.png", "b.png"], id="names suffice"),
        pytest.param(["a.png"], ["deep/down/a.png"], ["deep/down/a.png"], id="in a sub-folder"),
        pytest.param(
            ["train/a.png", "val/a.png"], ["val/a.jpg", "train/a.jpg"], ["train/a.jpg", "val/a.jpg"], id="sub-folders"
        ),
        pytest.param(["train/a.png"], ["val/a.png", "train/a.png"], ["train/a.png"], id="one split of two"),
        pytest.param(
            ["train/one/a.png", "train/two/a.png"],
            ["val/one/a.png", "train/two/a.png", "train/one/a.png"],
            ["train/one/a.png", "train/two/a.png"],
            id="the folders furthest up decide",
        ),
        pytest.param(["a.png", "b.png"], ["old/a.png", "a.png", "b.png"], ["a.png", "b.png"], id="the same place"),
        pytest.param(["x.1.png"], ["x.png", "x.1.jpg"], ["x.1.jpg"], id="a point in the name"),
    ],
)
def test_partners(tmp_path: Path, images: list[str], there: list[str], wanted: list[str]) -> None:
    files = draw(tmp_path / "thermal", *images)
    draw(tmp_path / "colour", *there)
    assert found(files, tmp_path / "colour") == wanted
    assert found([*files, *files], tmp_path / "colour") == wanted


@pytest.mark.parametrize(
    ("images", "there", "said"),
    [
        (["a.png", "b.png"], ["a.png"], "1 of 2 images have no partner of their own: b.png (none)."),
        (["a.png"], ["one/a.png", "two/a.png"], "a.png (several)"),
        (["a.png"], ["a.png", "a.jpg"], "a.png (several)"),
        (["one/a.png", "two/a.png"], ["a.png"], "2 of 2 images have no partner of their own: a.png (that of another"),
    ],
)
def test_images_without_one_of_their_own(tmp_path: Path, images: list[str], there: list[str], said: str) -> None:
    files = draw(tmp_path / "thermal", *images)
    draw(tmp_path / "colour", *there)
    with pytest.raises(UserError) as caught:
        find_partners(files, tmp_path / "colour")
    assert said in caught.value.problem


def test_sizes_and_files_that_are_no_images(tmp_path: Path) -> None:
    files = draw(tmp_path / "thermal", "a.png", "b.png", "c.png")
    draw(tmp_path / "colour", "a.png")
    draw(tmp_path / "colour", "b.png", size=(8, 12))
    (tmp_path / "colour" / "c.png").write_text("no image")
    with pytest.raises(UserError) as caught:
        find_partners(files, tmp_path / "colour")
    assert "2 of 3 images" in caught.value.problem
    assert "b.png (8x12 instead of 12x8), c.png (unreadable)." in caught.value.problem
    assert "\n" not in caught.value.problem


def test_the_first_ten_are_named(tmp_path: Path) -> None:
    files = draw(tmp_path / "thermal", *(f"{i:02}.png" for i in range(13)))
    draw(tmp_path / "colour", "00.png")
    with pytest.raises(UserError) as caught:
        find_partners(files, tmp_path / "colour")
    assert "12 of 13 images" in caught.value.problem
    assert caught.value.problem.count("(none)") == 10
    assert caught.value.problem.endswith("10.png (none) and 2 more.")


def test_a_photograph_that_lies_on_its_side_has_the_size_that_is_shown(tmp_path: Path) -> None:
    files = draw(tmp_path / "thermal", "a.png")
    (tmp_path / "colour").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "colour" / "a.jpg", exif=turned)
    assert found(files, tmp_path / "colour") == ["a.jpg"]


def test_other_channels_than_one_or_three_must_be_those_of_the_files(tmp_path: Path) -> None:
    files = draw(tmp_path / "thermal", "a.png", mode="L")
    draw(tmp_path / "colour", "a.png")
    assert found(files, tmp_path / "colour", 1) == ["a.png"]
    with pytest.raises(UserError, match=r"a.png \(3 channels instead of 4\)"):
        find_partners(files, tmp_path / "colour", 4)
    draw(tmp_path / "colour", "a.png", mode="RGBA")
    assert found(files, tmp_path / "colour", 4) == ["a.png"]
    (tmp_path / "colour" / "a.png").unlink()
    pages = [Image.fromarray(np.zeros(SIZE[::-1], np.uint8)) for _ in range(5)]
    pages[0].save(tmp_path / "colour" / "a.tiff", save_all=True, append_images=pages[1:])
    assert found(files, tmp_path / "colour", 5) == ["a.tiff"]


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    files = draw(tmp_path / "thermal", "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("a.png")
    for folder, said in {"none": "is no folder", "empty": "holds no images", "thermal/a.png": "is no folder"}.items():
        with pytest.raises(UserError, match=said):
            find_partners(files, tmp_path / folder)


def test_relative_paths_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "thermal/val/a.png", "colour/train/a.png", "colour/val/a.png")
    monkeypatch.chdir(tmp_path)
    assert find_partners(["thermal/val/a.png"], "colour") == {"thermal/val/a.png": "colour/val/a.png"}


@pytest.mark.shared
def test_photographs(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "bccd416" / "images", tmp_path / "images", copy_function=shutil.copyfile)
    files = [str(file) for file in (tmp_path / "images").rglob("*.jpg")]
    random.Random(0).shuffle(files)
    assert len(files) > 50
    assert find_partners(files, tmp_path / "images") == {file: file for file in files}


def test_the_partner_of_another_images_namesake_is_not_taken(tmp_path: Path) -> None:
    """train/0 has lost its partner; that of val/0 has the same name, and is alone now."""
    for split in ("train", "val"):
        for root in ("set", "rgb"):
            (tmp_path / root / split).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / root / split / "0.png")
    ours, val = str(tmp_path / "set/train/0.png"), str(tmp_path / "set/val/0.png")
    assert find_partners([ours], tmp_path / "rgb", among=[val]) == {ours: str(tmp_path / "rgb/train/0.png")}
    (tmp_path / "rgb/train/0.png").unlink()
    with pytest.raises(UserError, match="that of another image"):
        find_partners([ours], tmp_path / "rgb", among=[val])
