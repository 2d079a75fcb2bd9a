"""Frames of videos: sampled once, whole or not at all."""

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

from tests.data.files import film, state
from yolokd.data import sources
from yolokd.data.sources import MARKER, find_sources, sample_frames
from yolokd.errors import UserError


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
