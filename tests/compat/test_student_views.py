"""What the student sees of an image, in how many channels; the weak view and the strong one."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.compat.replays import ALL, IMGSZ, PLAIN, make_images, seed_all
from tests.compat.viewing import (
    COLOURLESS,
    SEEDS,
    assert_same_but_for_the_view,
    attached,
    build,
    each,
    negatives,
    samples,
)
from yolokd.compat import views as module
from yolokd.compat.views import STUDENT_VIEWS, TEACHER_VIEW, Strong, Views, attach_views

# Channels.


def test_the_teacher_always_sees_rgb(polygons: Path) -> None:
    for sample in each(attached(polygons, PLAIN | {"bgr": 1.0})):
        assert torch.equal(sample["img"].flip(0), sample[TEACHER_VIEW])
        assert not torch.equal(sample["img"], sample[TEACHER_VIEW])


def test_a_grey_student_of_a_coloured_file(polygons: Path) -> None:
    dataset = attached(polygons, ALL, Views(channels=3), channels=1)
    plain, coloured = build(polygons, channels=1), build(polygons, ALL | COLOURLESS)
    for seed in range(SEEDS):
        got = samples(dataset, seed)
        for a, b in zip(samples(coloured, seed)[:-1], got[:-1], strict=True):
            assert b["img"].shape == (1, IMGSZ, IMGSZ)
            assert torch.equal(a["img"], b[TEACHER_VIEW])
        assert_same_but_for_the_view(samples(plain, seed), got)


def test_a_grey_teacher(polygons: Path) -> None:
    dataset = attached(polygons, ALL | COLOURLESS, Views(channels=1))
    for a, b in zip(each(build(polygons, channels=1)), each(dataset), strict=True):
        assert torch.equal(a["img"], b[TEACHER_VIEW])


def test_a_student_with_four_channels(polygons: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "four", polygons=True)
    for file in folder.glob("*.png"):
        image = cv2.imread(str(file))
        cv2.imwrite(str(file), np.dstack([image, 255 - image[..., :1]]))
    pairs = {str(file): str(polygons / file.name) for file in folder.glob("*.png")}
    plain, dataset = build(folder, channels=4), attached(folder, ALL, Views(pairs), channels=4)
    if plain.load_image(0)[0].shape[2] != 4:
        pytest.skip("this Ultralytics reads a PNG of four channels as one of three")
    coloured = build(polygons, ALL | COLOURLESS)
    for seed in range(SEEDS):
        got = samples(dataset, seed)
        for a, b in zip(samples(coloured, seed)[:-1], got[:-1], strict=True):
            assert b["img"].shape == (4, IMGSZ, IMGSZ)
            assert torch.equal(a["img"], b[TEACHER_VIEW])
        assert_same_but_for_the_view(samples(plain, seed), got)


def test_an_npy_beside_a_partner_is_neither_read_nor_written(polygons: Path, tmp_path: Path) -> None:
    pairs = negatives(polygons, tmp_path / "negative")
    stale = Path(next(iter(pairs.values()))).with_suffix(".npy")
    np.save(stale, np.zeros((80, 80), np.uint8))
    before = stale.read_bytes()
    got = list(each(attached(polygons, PLAIN, Views(pairs))))
    assert stale.read_bytes() == before
    assert all(sample[TEACHER_VIEW].float().std() > 20 for sample in got)


# What the student sees of its image.


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
@pytest.mark.parametrize("view", STUDENT_VIEWS)
def test_the_view_is_the_students_alone(polygons: Path, tmp_path: Path, view: str, cache: Any) -> None:
    shutil.copytree(polygons.parent, tmp_path / "data")
    folder = tmp_path / "data" / "images"
    plain = build(folder, ALL | COLOURLESS, cache=cache)
    dataset = attached(folder, ALL | COLOURLESS, Views(student_view=view), cache=cache)
    for seed in range(SEEDS):
        wanted, got = samples(plain, seed), samples(dataset, seed)
        assert torch.equal(wanted.pop()["streams"], got.pop()["streams"])
        for a, b in zip(wanted, got, strict=True):
            assert torch.equal(a["img"], b[TEACHER_VIEW])
            assert torch.equal(a["bboxes"], b["bboxes"])
            assert not torch.equal(a["img"], b["img"])
    assert len(dataset.seen) <= dataset.max_buffer_length


@pytest.mark.parametrize("view", STUDENT_VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_validation_shows_the_same_view_to_the_student(polygons: Path, view: str, channels: int) -> None:
    plain, dataset = build(polygons, mode="val", channels=channels), build(polygons, mode="val", channels=channels)
    attach_views(dataset, Views(student_view=view, strong=True, channels=3))
    assert dataset.rect
    for i in range(len(dataset)):
        seen = STUDENT_VIEWS[view](plain.load_image(i)[0], dataset.im_files[i])
        a, b = plain[i], dataset[i]
        assert list(a) == list(b)
        assert a["img"].shape == b["img"].shape
        left, top = a["ratio_pad"][1]
        inside = b["img"][:, top : top + seen.shape[0], left : left + seen.shape[1]]
        assert np.array_equal(inside.numpy(), seen[..., ::-1].transpose(2, 0, 1))
        inside[:] = 114
        assert (b["img"] == 114).all()


def test_grey_is_luminance() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)  # BGR
    assert module._gray(image)[0].tolist() == [[29] * 3, [150] * 3, [76] * 3, [90] * 3]


def test_half_keeps_no_detail_of_one_pixel() -> None:
    board = np.indices((7, 10)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    seen = module._half(board[:6], "")
    assert seen.shape == (6, 10, 3)
    assert np.abs(seen.astype(int) - 100).max() <= 1
    flat = np.full((9, 9, 1), 77, np.uint8)
    assert np.array_equal(module._half(flat, ""), flat)


def test_dark_is_darker_and_noisy_and_always_the_same() -> None:
    flat = np.full((200, 200, 3), 200, np.uint8)
    seen = module._dark(flat, "a/1.png")
    light = 0.5 * (200 / 255) ** 2
    assert abs(seen.mean() - 255 * light) < 0.2
    assert abs(seen.std() - 255 * (light / 250 + 0.01**2) ** 0.5) < 0.2
    assert np.array_equal(seen, module._dark(flat, "elsewhere/1.png"))
    assert not np.array_equal(seen, module._dark(flat, "a/2.png"))
    assert module._dark(flat * 0, "1.png").mean() < 2


def test_a_buffered_view_is_made_once(polygons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def view(image: Any, file: str) -> Any:
        made.append(file)
        return 255 - image

    monkeypatch.setitem(STUDENT_VIEWS, "gray", view)
    dataset = attached(polygons, ALL, Views(student_view="gray"))
    dataset.max_buffer_length = len(dataset) + 1  # of images as of views, so nothing is dropped
    list(each(dataset))
    assert sorted(made) == sorted(dataset.im_files)


# Weak for the teacher, strong for the student.


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strong_view_is_the_students_alone_and_repeatable(polygons: Path, channels: int) -> None:
    hyp = ALL | COLOURLESS
    plain = build(polygons, hyp, channels)
    dataset = attached(polygons, hyp, Views(strong=True, channels=channels), channels=channels)
    differ = []
    for seed in range(2 * SEEDS):
        for i in range(len(dataset)):
            seed_all(seed)
            a = plain[i]
            seed_all(seed)
            b = dataset[i]
            assert torch.equal(a["img"], b[TEACHER_VIEW])
            assert torch.equal(a["bboxes"], b["bboxes"])
            differ.append(not torch.equal(a["img"], b["img"]))
    assert np.mean(differ) > 0.85
    first, second = samples(dataset, 1), samples(dataset, 1)
    assert all(torch.equal(a["img"], b["img"]) for a, b in zip(first[:-1], second[:-1], strict=True))


def test_the_strong_chain_acts_as_often_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()

    def count(name: str) -> Any:
        def step(image: Any, *rest: Any, **more: Any) -> Any:
            done.update([name, *map(str, rest)])
            return image

        return step

    for name in ("_jitter", "_gray", "_erase"):
        monkeypatch.setattr(module, name, count(name))
    monkeypatch.setattr(cv2, "GaussianBlur", count("blur"))
    seed_all(0)
    runs = 4000
    for _ in range(runs):
        Strong()({"img": np.zeros((8, 8, 3), np.uint8)})
    wanted = {"_jitter": 0.8, "_gray": 0.2, "blur": 0.5, "(0.05, 0.2)": 0.7, "(0.1, 6.0)": 0.5, "(0.05, 8.0)": 0.3}
    assert {name: done[name] / runs for name in wanted} == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(("share", "ratio"), [rest for _, *rest in module._ERASED])
def test_what_is_erased_is_one_rectangle_of_noise(share: tuple[float, float], ratio: tuple[float, float]) -> None:
    seed_all(0)
    for _ in range(20):
        image = np.zeros((120, 150, 3), np.uint8)
        module._erase(image, share, ratio)
        rows, columns = np.nonzero(image.any(2))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert share[0] * 0.9 < h * w / (120 * 150) < share[1] * 1.1
        assert ratio[0] * 0.85 < h / w < ratio[1] * 1.15
        assert abs(image[image.any(2)].mean() - 127.5) < 10


def test_jitter_stays_in_its_ranges() -> None:
    seed_all(0)
    grey, red = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), (80, 80, 120), np.uint8)
    values, hues = [], []
    for _ in range(200):
        out = module._jitter(grey)
        assert np.ptp(out) <= 1  # grey stays grey, whatever saturation and hue do
        values.append(float(out.mean()))
        hues.append(int(cv2.cvtColor(module._jitter(red), cv2.COLOR_BGR2HSV)[0, 0, 0]))
    assert 58 <= min(values) < 66  # brightness alone moves a flat image: it has no contrast
    assert 134 < max(values) <= 142
    assert {hue < 90 for hue in hues} == {True, False}
    assert 12 < max(min(hue, 180 - hue) for hue in hues) <= 21  # a tenth of the circle is 18, and rounding
    assert module._jitter(grey[..., :1]).shape == (4, 4, 1)
