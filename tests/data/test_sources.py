"""What unlabelled= names: folders, lists, images and videos, and which of it can be read."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS

from tests.data.files import film, image, state
from yolokd.data import sources
from yolokd.data.sources import Sources, find_sources, readable
from yolokd.errors import UserError


@pytest.fixture
def tree(here: Path) -> Path:
    """A folder with images, a video, a subfolder, hidden files, a linked folder and files of other kinds."""
    for name in ("b.jpg", "a.PNG", "deep/er/c.jpg", ".hidden.jpg", ".cache/d.jpg"):
        image(here / "set" / name)
    image(here / "elsewhere" / "e.jpg")
    (here / "set" / "linked").symlink_to(here / "elsewhere")
    (here / "set" / "labels.txt").write_text("0 .5 .5 .1 .1")
    (here / "set" / "folder.jpg").mkdir()
    film(here / "set" / "deep" / "v.avi", frames=2)
    return here / "set"


def test_a_folder_gives_its_images_and_videos(tree: Path) -> None:
    images = [str(tree / name) for name in ("a.PNG", "b.jpg", "deep/er/c.jpg", "linked/e.jpg")]
    assert find_sources("set") == Sources(tuple(images), (str(tree / "deep" / "v.avi"),))


def test_several_are_parted_by_commas_or_given_as_a_list_and_nothing_counts_twice(tree: Path) -> None:
    (tree.parent / "list.txt").write_text("./set/b.jpg\n")
    single = tree.parent / "elsewhere" / "e.jpg"
    whole = find_sources("set")
    assert find_sources("set, set/deep ,list.txt,") == whole
    assert find_sources(["set/deep", "set", "set/deep/v.avi"]) == whole
    assert find_sources([str(single), "set"]).images == (str(single), *whole.images[:-1])  # the link is the same file


def test_a_folder_linked_into_itself_counts_once(tree: Path) -> None:
    whole = find_sources("set")
    (tree / "deep" / "round").symlink_to(tree)
    assert find_sources("set") == whole


def test_a_folder_with_a_pattern_in_its_name(here: Path) -> None:
    assert find_sources([str(image(here / "a[1]*" / "x.jpg").parent)]).images == (str(here / "a[1]*" / "x.jpg"),)


def test_a_list_names_images_from_its_folder_or_from_where_we_stand(here: Path) -> None:
    for name in ("lists/one.jpg", "two.jpg", "three.jpg"):
        image(here / name)
    text = f"./one.jpg\r\n\r\ntwo.jpg\r\n{here / 'three.jpg'}\r\n\r\n"
    (here / "lists" / "l.txt").write_text(text, encoding="utf-8-sig")
    names = ("lists/one.jpg", "three.jpg", "two.jpg")
    assert find_sources("lists/l.txt") == Sources(tuple(str(here / name) for name in names), ())


@pytest.mark.parametrize("name", ["x.jpg", "y.PNG"])
def test_one_image_and_one_video_are_sources(name: str, here: Path) -> None:
    image(here / name)
    film(here / "v.AVI", 1)
    assert find_sources([name, "v.AVI"]) == Sources((str(here / name),), (str(here / "v.AVI"),))


@pytest.mark.parametrize(
    ("asked", "problem", "remedy"),
    [
        ("", "names nothing", "folder"),
        (" , ", "names nothing", "folder"),
        ([], "names nothing", "folder"),
        ("gone", "unlabelled=gone: no such", "folder"),
        ("some,gone.jpg", "unlabelled=gone.jpg: no such", "folder"),
        ("notes.md", "unlabelled=notes.md is neither a list of images nor a video nor an image", "folder"),
        ("empty", "unlabelled=empty holds no image and no video", "jpg, mpo, png"),
        ("texts", "unlabelled=texts holds no image and no video", "mkv, mov, mp4"),
        ("empty.txt", "unlabelled=empty.txt holds no image", "jpg"),
        ("lost.txt", "4 of 5 files do not exist, such as a.jpg, b.jpg, c.jpg", "list"),
        ("mixed.txt", "2 of 3 lines name no image, such as notes.md, v.mp4", "list"),
        ("binary.txt", "cannot be read as a list", "UTF-8"),
    ],
)
def test_what_is_no_source_is_refused(asked: str | list[str], problem: str, remedy: str, here: Path) -> None:
    image(here / "some" / "x.jpg")
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    for file in ("notes.md", "texts/readme.txt", "empty.txt"):
        (here / file).write_text(" \n")
    (here / "lost.txt").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\nsome/x.jpg")
    (here / "mixed.txt").write_text("some/x.jpg\nnotes.md\nv.mp4")
    (here / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError) as caught:
        find_sources(asked)
    assert "unlabelled=" in caught.value.problem
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.problem + caught.value.remedy


def test_the_formats_are_those_of_ultralytics(here: Path) -> None:
    for ending in IMG_FORMATS | VID_FORMATS | {"txt", "npy", "json"}:
        (here / f"x.{ending}").touch()
    found = find_sources(str(here))
    assert {Path(file).suffix[1:] for file in found.images} == IMG_FORMATS
    assert {Path(file).suffix[1:] for file in found.videos} == VID_FORMATS


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[str], list[str]]:
    """A folder, its good files, and its bad ones."""
    root = tmp_path / "mixed"
    good = [image(root / name) for name in ("a.jpg", "b.png", "c.bmp", "d.webp", "e.tiff", "ä ö.jpg")]
    good.append(image(root / "ten.png", (10, 10)))
    whole, png = (root / "a.jpg").read_bytes(), (root / "b.png").read_bytes()
    longer = root / "longer.jpg"  # Ultralytics would mend it in place
    longer.write_bytes(whole + b"\0\0")
    contents = {
        "half.jpg": whole[: len(whole) // 2],
        "endless.jpg": whole[:-100],
        "half.png": png[: len(png) // 2],
        "header.jpg": whole[:30],
        "text.jpg": b"this is a text",
        "empty.jpg": b"",
        "empty.heic": b"",
    }
    bad = [image(root / "5x5.png", (5, 5)), image(root / "9x40.jpg", (9, 40)), root / "gone.jpg", root / "folder.jpg"]
    bad[-1].mkdir()
    for name, content in contents.items():
        (root / name).write_bytes(content)
        bad.append(root / name)
    return root, [str(file) for file in [*good, longer]], [str(file) for file in bad]


@pytest.mark.parametrize("workers", [1, 4])
def test_files_are_parted_and_not_touched(mixed: tuple[Path, list[str], list[str]], workers: int) -> None:
    root, good, bad = mixed
    before, names = state(root), sorted(os.listdir(root))
    files = [file for pair in zip(good, bad[: len(good)], strict=True) for file in pair] + bad[len(good) :]
    assert readable(files, workers=workers) == (good, bad)
    assert state(root) == before
    assert sorted(os.listdir(root)) == names


def test_ultralytics_agrees(mixed: tuple[Path, list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own check, which may write: on files that are lost afterwards."""
    from ultralytics.data.utils import verify_image

    monkeypatch.setattr("ultralytics.utils.checks.check_requirements", lambda *_: False)
    _, good, bad = mixed
    assert [verify_image(((file, 0), ""))[1] for file in good] == [1] * len(good)
    assert [verify_image(((file, 0), ""))[1] for file in bad] == [0] * len(bad)


def test_an_opencv_that_fills_what_is_missing_with_grey(
    mixed: tuple[Path, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenCV 4 does; Ultralytics drops these."""
    monkeypatch.setattr(sources, "imread", lambda *_, **__: np.full((40, 60, 3), 128, np.uint8))
    root, good, _ = mixed
    damaged = [str(root / name) for name in ("half.jpg", "endless.jpg", "half.png")]
    assert readable([*good, *damaged]) == (good, damaged)


def test_a_text_with_the_name_of_an_image_installs_nothing(
    mixed: tuple[Path, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultralytics.utils.checks.check_requirements", lambda *_: pytest.fail("would install"))
    text = str(mixed[0] / "text.jpg")
    assert readable([text]) == ([], [text])


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = str(image(tmp_path / "x.jpg")), str(image(tmp_path / "y.jpg"))
    os.chmod(file, 0)
    if os.access(file, os.R_OK):  # root may read everything: refuse where the file is opened
        real = np.fromfile

        def refused(name: str, *rest: object) -> object:
            if name == file:
                raise PermissionError(13, "Permission denied", name)
            return real(name, *rest)  # type: ignore[call-overload]

        monkeypatch.setattr(np, "fromfile", refused)
    assert readable([file, other]) == ([other], [file])


def test_the_channels_of_the_data_set_count(tmp_path: Path) -> None:
    colour = str(image(tmp_path / "colour.png"))
    grey, four = str(tmp_path / "grey.png"), str(tmp_path / "four.png")
    cv2.imwrite(grey, np.full((20, 20), 9, np.uint8))
    cv2.imwrite(four, np.full((20, 20, 4), 9, np.uint8))
    files = [colour, grey, four]
    assert readable(files) == (files, [])
    assert readable(files, channels=1) == (files, [])
    assert readable(files, channels=4) == ([four], [colour, grey])
    assert readable([]) == ([], [])


@pytest.mark.shared
def test_real_images_are_readable(shared: Path) -> None:
    files = find_sources(str(shared / "data" / "tinycoco100" / "images")).images
    assert len(files) == 100
    assert readable(files) == (list(files), [])
