from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from torch.nn import functional as F
from torch.utils.data import DataLoader
from ultralytics.utils.ops import scale_boxes

from yolokd.compat.checkpoint import load_detector, sha256
from yolokd.compat.images import read_letterboxed
from yolokd.errors import UserError
from yolokd.predictions import HeadInfo, Predictions
from yolokd.teachers import cache_file, caching
from yolokd.teachers.cache import Cache
from yolokd.teachers.caching import build_cache, image_hashes
from yolokd.teachers.extraction import extract
from yolokd.teachers.live import LiveTeacher


class Eye:
    """A teacher whose answer is a plain function of the pixels under each cell; no image changes another's."""

    name = "eye"
    info = HeadInfo({0: "red", 1: "green", 2: "blue"}, (8, 16, 32), (), 16, end2end=False)

    def __init__(self, die_at: int = -1, slow: float = 0.0) -> None:
        self.seen = 0
        self.log: list[float] = []
        self.die_at = die_at
        self.slow = slow
        self.mix = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 4

    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        time.sleep(self.slow)
        if self.seen == self.die_at:
            raise KeyboardInterrupt
        self.seen += 1
        self.log.append(float(batch["img"].double().mean()))
        levels = [F.avg_pool2d(batch["img"], s).flatten(2) for s in self.info.strides]
        means = torch.cat(levels, 2)  # (B, 3, A)
        near = -torch.arange(16.0).repeat(4)[:, None]  # boxes of a few cells, inside the image
        return Predictions((means - 0.6) * 12, torch.einsum("kc,bca->bka", self.mix, means) + near, None)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Seven images of several shapes, the last one dark: nothing is seen there."""
    return paint(tmp_path / "images")


def paint(folder: Path) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(3)
    files = []
    for i, shape in enumerate([(64, 64), (40, 64), (64, 33), (101, 45), (30, 90), (64, 64), (64, 50)]):
        image = cv2.resize(rng.integers(0, 255 if i < 6 else 30, (5, 6, 3), dtype=np.uint8), shape[::-1])
        files.append(folder / f"{i}.png")
        cv2.imwrite(str(files[-1]), image)
    return files


def build(images: list[Path], folder: Path, teacher: Eye | None = None, **settings: Any) -> Cache:
    return build_cache(teacher or Eye(), "e" * 64, images, folder, 64, **{"batch": 2, **settings})


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name[0] != "."}


def test_both_images_are_what_the_teacher_saw(images: list[Path], tmp_path: Path) -> None:
    cache, teacher = build(images, tmp_path / "cache"), Eye()
    hashes = image_hashes(images, tmp_path / "cache")
    total = 0
    for file in images:
        boxed = read_letterboxed(file, 64)
        assert boxed is not None
        square = boxed.image.numpy()
        for flip in (False, True):
            shown = np.ascontiguousarray(square[..., ::-1]) if flip else square
            said = teacher({"img": torch.from_numpy(shown)[None].float() / 255})
            (found,) = extract(said, teacher.info, 64, 1, conf=0.1, iou=0.7, max_det=300)
            rows = cache.rows(hashes[str(file)], flip)
            (top, left), (height, width) = boxed.pad, boxed.resized
            left = 64 - left - width if flip else left
            expected = ((found.boxes - [left, top] * 2) / ([width, height] * 2)).clip(0, 1)
            real = (expected[:, 2:] > expected[:, :2] + 1e-5).all(1)
            assert len(rows) == real.sum()
            assert np.allclose(cache.boxes(rows), expected[real], atol=1e-5)
            got = cache.take(np.array(rows))
            assert np.allclose(got.scores, found.scores[real], atol=5e-4)
            total += len(rows)
    assert total == len(cache) > 100
    assert not len(cache.rows(hashes[str(images[6])], False))  # nothing seen, and stored as such


@pytest.mark.parametrize("shape", [(333, 500), (500, 333), (1000, 31), (101, 1003)])
def test_boxes_are_brought_to_the_original_as_ultralytics_does(tmp_path: Path, shape: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*shape, 3), np.uint8))
    boxed = read_letterboxed(tmp_path / "a.png", 320)
    assert boxed is not None
    rng = np.random.default_rng(0)
    low = rng.uniform(-20, 300, (50, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 100, (50, 2))], 1).astype(np.float32)
    ratio = (boxed.resized[0] / shape[0], boxed.resized[1] / shape[1])  # as the validator has it
    theirs = scale_boxes((320, 320), boxes.copy(), shape, (ratio, boxed.pad[::-1]))
    seen = (theirs[:, 2:] - theirs[:, :2] > 0.1).all(1)
    assert seen.sum() > 2
    found = cache_file.Found(boxes[seen], np.full((seen.sum(), 3), 0.5, np.float32))
    kind = cache_file.row_type(replace(Eye.info, reg_max=1), cache_file.Recipe("e", 320))
    record = cache_file.encode("0" * 64, *boxed[1:], (found, found), 320, kind)
    ours = record.rows["box"][: seen.sum()] / 65535 * np.tile(shape[::-1], 2)
    assert np.abs(ours - theirs[seen]).max() < max(shape) / 131070 + 1e-3


def test_the_file_does_not_depend_on_workers_or_order(images: list[Path], tmp_path: Path) -> None:
    teachers = Eye(), Eye()
    build(images, tmp_path / "a", teachers[0], workers=0)
    build(images[::-1] + images[:2], tmp_path / "b", teachers[1], workers=2)
    assert teachers[0].log == teachers[1].log  # the same batches: another batch has other last bits
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 1


def test_no_random_number_of_the_run_is_used(images: list[Path], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build(images, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("die_at", [0, 3, 6])
def test_finished_work_is_kept_and_the_end_is_the_same(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    build(images, tmp_path / "whole")
    monkeypatch.setattr(caching, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cut", Eye(die_at))
    with pytest.raises(UserError, match="no teacher's cache"):
        Cache.open(tmp_path / "cut")
    teacher, told = Eye(), []
    build(images, tmp_path / "cut", teacher, progress=lambda done, total: told.append((done, total)))
    assert teacher.seen == 8 - die_at // 2 * 2  # 4 batches, and as many of mirror images
    assert told[-1] == (7, 7)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_damaged_part_is_made_anew(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(images, tmp_path / "whole")
    monkeypatch.setattr(caching, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cut", Eye(4))
    part = next((tmp_path / "cut").glob("*.parts/*"))
    part.write_bytes(part.read_bytes()[:-1])
    build(images, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed")
@pytest.mark.parametrize("where", ["teacher", "crc", "os.fsync", "Path.replace", "_merge", "shutil.rmtree"])
@pytest.mark.parametrize("after", [0, 2])
def test_killed_at_any_moment(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: int
) -> None:
    """SIGKILL in the teacher, while a part or the whole is written, before they are joined, before they are removed."""
    build(images, tmp_path / "whole")
    monkeypatch.setattr(caching, "SAVE_EVERY", 0.0)
    pid = os.fork()
    if not pid:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        owner, name = {
            "teacher": (Eye, "__call__"), "crc": (cache_file, "crc"), "os.fsync": (os, "fsync"),
            "Path.replace": (Path, "replace"), "_merge": (caching, "_merge"), "shutil.rmtree": (shutil, "rmtree"),
        }[where]  # fmt: skip
        real = getattr(owner, name)
        calls = iter(range(100))
        last = after if name not in ("_merge", "rmtree") else 0
        monkeypatch.setattr(owner, name, lambda *args: kill() if next(calls) == last else real(*args))
        build(images, tmp_path / "cut")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    build(images, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not list((tmp_path / "cut").rglob("*.partial"))


def test_of_two_at_once_one_builds(images: list[Path], tmp_path: Path) -> None:
    teachers = [Eye(slow=0.01) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        caches = list(pool.map(lambda teacher: build(images, tmp_path / "one", teacher), teachers))
    assert sorted(teacher.seen for teacher in teachers) == [0, 0, 8]
    assert len({len(cache) for cache in caches}) == 1


def test_only_new_images_are_run(images: list[Path], tmp_path: Path) -> None:
    build(images, tmp_path / "whole")
    build(images[:4], tmp_path / "grown")
    teacher = Eye()
    build(images[2:], tmp_path / "grown", teacher)
    assert teacher.seen == 4  # three images in two batches
    assert content(tmp_path / "grown") == content(tmp_path / "whole")


def test_a_changed_image_is_refused_by_name(images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    recipe = build(images, folder).recipe
    Cache.open(folder, recipe, image_hashes(images, folder))
    stat = images[3].stat()
    whole = bytearray(images[3].read_bytes())
    whole[-20] ^= 1
    images[3].write_bytes(bytes(whole))
    os.utime(images[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    with pytest.raises(UserError, match=r"does not hold 1 of 7 images.*3\.png"):
        Cache.open(folder, recipe, image_hashes(images, folder))


def test_a_damaged_cache_is_not_built_over(images: list[Path], tmp_path: Path) -> None:
    file = build(images, tmp_path / "cache").file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="bytes instead of"):
        build(images, tmp_path / "cache")


def test_hashes_are_remembered(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(caching, "sha256", lambda path: read.append(path) or sha256(path))
    monkeypatch.setattr(caching, "_FRESH", -1_000_000_000_000)  # as if the files were old
    first = image_hashes(images, tmp_path / "cache", workers=2)
    assert first == {str(file): sha256(file) for file in images}
    assert len(read) == 7
    assert image_hashes(images, tmp_path / "cache") == first
    assert len(read) == 7
    images[2].write_bytes(images[1].read_bytes())
    assert image_hashes(images, tmp_path / "cache")[str(images[2])] == first[str(images[1])]
    assert len(read) == 8
    for damaged in ("{", "[1, 2]", '{"a": 1}'):
        (tmp_path / "cache" / ".images.json").write_text(damaged)
        assert len(image_hashes(images, tmp_path / "cache")) == 7
    assert len(read) == 29


def test_a_file_put_in_place_with_its_old_time_is_seen(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_FRESH", -1_000_000_000_000)  # as if the files were old
    first = image_hashes(images, tmp_path / "cache")
    entry = images[0].stat()
    images[0].write_bytes(images[0].read_bytes()[:-1] + b"x")
    os.utime(images[0], ns=(entry.st_atime_ns, entry.st_mtime_ns))
    assert image_hashes(images, tmp_path / "cache")[str(images[0])] != first[str(images[0])]


def test_a_file_hashed_just_after_it_was_written_is_not_trusted(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = [10, time.time_ns(), time.time_ns()]
    monkeypatch.setattr(caching, "_state", lambda path: state)
    first = image_hashes(images, tmp_path / "cache")
    images[0].write_bytes(b"x")  # within the clock's tick: nothing else tells
    assert image_hashes(images, tmp_path / "cache")[str(images[0])] != first[str(images[0])]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_image_is_named(images: list[Path], tmp_path: Path, workers: int) -> None:
    images[4].write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"4\.png is no image"):
        build(images, tmp_path / "cache", workers=workers)
    images[4].unlink()
    with pytest.raises(UserError, match=r"4\.png cannot be read"):
        build(images, tmp_path / "cache")


def test_refused_before_anything_is_written(images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher_imgsz=72 is not a multiple of 32"):
        build_cache(Eye(), "e" * 64, images, tmp_path / "cache", 72)
    with pytest.raises(UserError, match="no images"):
        build([], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_teacher_that_says_nan_is_refused(images: list[Path], tmp_path: Path) -> None:
    teacher = Eye()
    teacher.mix = teacher.mix * float("nan")
    with pytest.raises(UserError, match="teacher=eye: its boxes hold NaN"):
        build(images, tmp_path / "cache", teacher)


@pytest.mark.shared
def test_a_real_teacher_finds_what_ultralytics_predicts(shared: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    weights = shared / "weights" / "yolov8n.pt"
    teacher = LiveTeacher(load_detector(weights, role="teacher"), torch.device("cpu"), "fp32")
    every = sorted((shared / "data" / "tinycoco100" / "images" / "train").glob("*.jpg"))
    shapes = [cv2.imread(str(file)).shape[:2] for file in every]
    # Sides that both ways of rounding bring to the same pixels.
    files = [every[shapes.index(wanted, start)] for wanted, start in (((480, 640), 0), ((640, 480), 10))]
    cache = build_cache(teacher, sha256(weights), files, tmp_path / "cache", 320, conf=0.25, batch=1)
    hashes = image_hashes(files, tmp_path / "cache")
    total, yolo = 0, YOLO(weights)
    for file in files:
        image = cv2.imread(str(file))
        for flip in (False, True):
            shown = np.ascontiguousarray(image[:, ::-1]) if flip else image
            theirs = yolo.predict(shown, imgsz=320, conf=0.25, iou=0.7, rect=False, verbose=False)[0].boxes
            rows = cache.rows(hashes[str(file)], flip)
            total += len(rows)
            assert len(rows) == len(theirs)
            ours = cache.boxes(rows) * np.tile(image.shape[1::-1], 2)
            assert np.allclose(ours, theirs.xyxy.numpy(), rtol=0, atol=0.1)  # pixels
            scores = cache.take(np.array(rows)).scores
            assert np.allclose(scores.max(1), theirs.conf.numpy(), atol=2e-3)
            assert scores.argmax(1).tolist() == theirs.cls.tolist()
    assert total > 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [(4,), (0, 1, 2, 3), tuple(range(7))])
def test_what_is_no_image_is_left_out_where_that_is_asked_for(
    images: list[Path], tmp_path: Path, workers: int, broken: tuple[int, ...]
) -> None:
    whole = [file for i, file in enumerate(images) if i not in broken]
    for i in broken:
        images[i].write_bytes(b"no. %d" % i)  # each with a hash of its own
    folder = tmp_path / "cache"
    if not whole:
        with pytest.raises(UserError, match="None of 7 images can be read"):
            build(images, folder, workers=workers, strict=False)
        return
    told: list[tuple[int, int]] = []
    cache = build(images, folder, strict=False, workers=workers, progress=lambda *done: told.append(done))
    assert told[-1] == (7, 7)
    assert [file for file, digest in image_hashes(images, folder).items() if digest in cache] == list(map(str, whole))
    alone = build(whole, tmp_path / "alone", batch=1)
    for file, digest in image_hashes(whole, folder).items():
        for flip in (False, True):
            assert np.array_equal(cache.boxes(cache.rows(digest, flip)), alone.boxes(alone.rows(digest, flip))), file
    # Asked again, the teacher has nothing to look at, and the file is not written anew.
    before, teacher = cache.file.stat().st_mtime_ns, Eye()
    build(images, folder, teacher, strict=False)
    assert (cache.file.stat().st_mtime_ns, teacher.seen) == (before, 0)
    assert not list(folder.glob("*.parts"))


def refuse_writing(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As on a read-only or a full disk, for whoever may write everywhere."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(caching, "atomic_replace", refused)
    monkeypatch.setattr(cache_file, "atomic_replace", refused)
    if code != errno.ENOSPC:
        monkeypatch.setattr(FileLock, "acquire", refused)


def test_hashes_that_cannot_be_remembered_are_read_again(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_FRESH", -1_000_000_000_000)  # as if the files were old
    known = image_hashes(images[:4], tmp_path / "cache")
    read: list[Path] = []
    monkeypatch.setattr(caching, "sha256", lambda path: read.append(path) or sha256(path))
    for code in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        with monkeypatch.context() as shut:
            refuse_writing(shut, code)
            assert image_hashes(images, tmp_path / "cache") == known | {str(f): sha256(f) for f in images[4:]}
    assert len(read) == 9  # what was remembered before is still known


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_refused_by_its_folder(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_writing(monkeypatch, code)
    with pytest.raises(UserError) as caught:
        build(images, tmp_path / "cache")
    assert caught.value.problem == f"{tmp_path / 'cache'} cannot be written to: {os.strerror(code)}."
    assert "Make room there" in caught.value.remedy


def test_too_many_rows_are_refused_as_soon_as_they_are_there(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = len(build(images[:2], tmp_path / "two"))
    monkeypatch.setattr(caching, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(cache_file, "MAX_ROWS", rows)
    teacher = Eye()
    with pytest.raises(UserError, match="it can hold") as caught:
        build(images, tmp_path / "cache", teacher)
    assert teacher.seen < 8
    assert "fraction=" in caught.value.remedy


def test_no_more_readers_than_cores_and_batches(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Loader(DataLoader[Any]):
        def __init__(self, *args: Any, num_workers: int, **more: Any) -> None:
            asked.append(num_workers)
            super().__init__(*args, **more)

    monkeypatch.setattr(caching, "DataLoader", Loader)
    for cores, count, batch in ((16, 7, 2), (3, 7, 2), (16, 7, 7)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        build(images[:count], tmp_path / f"{cores} {batch}", workers=8, batch=batch)
    assert asked == [4, 3, 0]
