from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS

from yolokd.data import sources
from yolokd.data.sources import MARKER, Sources, find_sources, readable, sample_frames
from yolokd.errors import UserError


def image(file: Path, size: tuple[int, int] = (40, 60), seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    return file


def film(file: Path, frames: int = 30, fps: float = 10, size: tuple[int, int] = (64, 48)) -> Path:
    """Motion JPEG, which every OpenCV writes; frame i has about the brightness 5 * i."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 5 * i, np.uint8))
    writer.release()
    return file


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each file, also of the hidden ones."""
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


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


@pytest.mark.parametrize(
    ("seconds", "numbers"), [(1.0, [0, 10, 20]), (0.25, [0, 3, 5, 8, 10]), (0, [0, 1, 2]), (9, [0])]
)
def test_a_frame_is_taken_every_so_many_seconds(seconds: float, numbers: list[int], tmp_path: Path) -> None:
    frames = sample_frames(str(film(tmp_path / "a b.avi")), tmp_path / "out", seconds)
    assert [int(Path(frame).stem) for frame in frames][: len(numbers)] == numbers
    tones = [cv2.imread(frame).mean() for frame in frames]
    assert tones == pytest.approx([5 * int(Path(frame).stem) for frame in frames], abs=3)
    assert {cv2.imread(frame).shape for frame in frames} == {(48, 64, 3)}


def test_frames_lie_in_a_folder_of_the_video(tmp_path: Path) -> None:
    one, other = film(tmp_path / "v.avi"), tmp_path / "x" / "v.avi"
    other.parent.mkdir()
    film(other, frames=5)
    mark = hashlib.sha256(str(one).encode()).hexdigest()[:8]
    frames = sample_frames(str(one), tmp_path / "out")
    assert frames == [str(tmp_path / "out" / f"v-{mark}" / f"{number:06d}.png") for number in (0, 10, 20)]
    assert len(sample_frames(str(other), tmp_path / "out")) == 1
    assert all(Path(frame).is_file() for frame in frames), "videos of one name got into each other's way"


def test_a_relative_path_is_the_same_video(here: Path) -> None:
    film(here / "v.avi")
    assert sample_frames("v.avi", "out") == sample_frames(str(here / "v.avi"), here / "out")


def test_finished_frames_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = film(tmp_path / "v.avi")
    frames = sample_frames(str(video), tmp_path / "out")
    before = state(tmp_path / "out")
    monkeypatch.setattr(sources, "_frames", lambda *_: pytest.fail("decoded again"))
    assert sample_frames(str(video), tmp_path / "out") == frames
    assert state(tmp_path / "out") == before


def change_time(video: Path, frames: list[str]) -> None:
    os.utime(video, (1, 1))


def change_content(video: Path, frames: list[str]) -> None:
    film(video, frames=12)


def lose_a_frame(video: Path, frames: list[str]) -> None:
    Path(frames[1]).unlink()


def lose_the_marker(video: Path, frames: list[str]) -> None:
    Path(frames[0]).with_name(MARKER).unlink()


def tear_the_marker(video: Path, frames: list[str]) -> None:
    marker = Path(frames[0]).with_name(MARKER)
    marker.write_bytes(marker.read_bytes()[:20])


@pytest.mark.parametrize("change", [change_time, change_content, lose_a_frame, lose_the_marker, tear_the_marker])
def test_another_file_or_a_sampling_that_is_not_whole_begins_anew(change: object, tmp_path: Path) -> None:
    video = film(tmp_path / "v.avi")
    change(video, sample_frames(str(video), tmp_path / "out"))  # type: ignore[operator]
    again = sample_frames(str(video), tmp_path / "out")
    fresh = sample_frames(str(video), tmp_path / "fresh")
    assert [Path(frame).read_bytes() for frame in again] == [Path(frame).read_bytes() for frame in fresh]
    assert sorted(str(file) for file in Path(again[0]).parent.glob("*.png")) == again


def test_another_distance_leaves_no_frame_of_the_last(tmp_path: Path) -> None:
    video = str(film(tmp_path / "v.avi"))
    sample_frames(video, tmp_path / "out", 0.5)
    frames = sample_frames(video, tmp_path / "out", 1.0)
    assert find_sources(str(tmp_path / "out")).images == tuple(frames)


KILLED = """
import sys, time
from yolokd.data import sources
real = sources.atomic_replace
def slow(path, write):
    def halfway(partial):
        partial.write_bytes(b"torn")  # what a kill in the middle of writing would leave
        print("writing", flush=True)
        time.sleep(60)
    real(path, halfway if path.name == "000020.png" else write)
sources.atomic_replace = slow
sources.sample_frames(sys.argv[1], sys.argv[2])
"""


def test_a_killed_sampling_leaves_no_torn_frame_and_begins_again(tmp_path: Path) -> None:
    video, out = film(tmp_path / "v.avi"), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(video), str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.strip() == "writing" for line in lines)
    process.kill()
    process.wait()
    left = find_sources(str(out)).images
    assert [Path(file).name for file in left] == ["000000.png", "000010.png"]
    assert all(cv2.imread(file) is not None for file in left)
    frames = sample_frames(str(video), out)
    assert [Path(file).name for file in frames] == ["000000.png", "000010.png", "000020.png"]
    assert sorted(file.name for file in Path(frames[0]).parent.iterdir()) == [*(Path(f).name for f in frames), MARKER]


def test_of_several_at_once_one_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, real, sampled = str(film(tmp_path / "v.avi")), sources._sample, []

    def slow(*args: object) -> list[str]:
        sampled.append(args)
        time.sleep(0.2)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "_sample", slow)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: sample_frames(video, tmp_path / "out"), range(3)))
    assert answers[0] == answers[1] == answers[2]
    assert len(sampled) == 1


class Capture:
    """A video whose frame rate and damaged frames are as told."""

    def __init__(self, fps: float, length: int, damaged: frozenset[int] = frozenset()) -> None:
        self.fps, self.length, self.damaged, self.number = fps, length, damaged, -1

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        assert key == cv2.CAP_PROP_FPS
        return self.fps

    def grab(self) -> bool:
        self.number += 1
        return self.number < self.length

    def retrieve(self) -> tuple[bool, object]:
        good = self.number not in self.damaged
        return good, np.full((16, 16, 3), self.number, np.uint8) if good else None

    def release(self) -> None:
        self.number = -1


@pytest.mark.parametrize(
    ("capture", "numbers"),
    [
        (Capture(0, 60), [0, 25, 50]),
        (Capture(float("nan"), 60), [0, 25, 50]),
        (Capture(-1, 60), [0, 25, 50]),
        (Capture(29.97, 100), [0, 30, 60, 90]),
        (Capture(10, 40, frozenset({0, 10, 11})), [1, 12, 20, 30]),
        (Capture(10, 50, frozenset(range(5, 35))), [0, 35, 40]),
    ],
)
def test_frame_rates_and_damage(
    capture: Capture, numbers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v.mp4").touch()
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: capture)
    frames = sample_frames(str(tmp_path / "v.mp4"), tmp_path / "out")
    assert [int(Path(frame).stem) for frame in frames] == numbers
    assert json.loads(Path(frames[0]).with_name(MARKER).read_text())["seconds"] == 1.0


def test_what_is_no_video_is_refused_and_leaves_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_text("no video at all")
    with pytest.raises(UserError, match=r"v\.mp4 is not a video that can be read: OpenCV cannot open it\.\n.+"):
        sample_frames(str(tmp_path / "v.mp4"), tmp_path / "out")
    with pytest.raises(UserError, match=r"gone\.mp4 is not a video that can be read: No such file"):
        sample_frames(str(tmp_path / "gone.mp4"), tmp_path / "out")
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Capture(25, 0))
    with pytest.raises(UserError, match="it holds no frame"):
        sample_frames(str(tmp_path / "v.mp4"), tmp_path / "out")
    assert not [file for file in (tmp_path / "out").rglob("*") if file.suffix in {".png", ".json"}]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file stands here")
    with pytest.raises(UserError, match="cannot be written to"):
        sample_frames(str(film(tmp_path / "v.avi", 1)), tmp_path / "out")


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
