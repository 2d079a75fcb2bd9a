"""A data set that shows the teacher another image than the student, moved by the same augmentation."""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader
from ultralytics.data.augment import Mosaic, RandomHSV

from tests.compat.replays import ALL, IMGSZ, PLAIN, SETTINGS, make_images, seed_all
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
from yolokd.compat.transforms import exchange
from yolokd.compat.views import TEACHER_VIEW, Views, ViewsDataset, attach_views, stacked

# The student does not notice.


@pytest.mark.parametrize("kind", ["boxes", "polygons"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_images_labels_and_random_streams_are_those_of_a_run_without(
    setting: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    plain, dataset = build(folder, SETTINGS[setting]), attached(folder, SETTINGS[setting])
    for seed in range(SEEDS):
        assert_same_but_for_the_view(samples(plain, seed), samples(dataset, seed))


READ = [{"rect": True}, {"cache": "ram"}, {"cache": "disk"}, {"bgr": 0.5}, {"single_cls": True}, {"task": "segment"}]


@pytest.mark.parametrize("more", READ, ids=str)
def test_nor_with_partners_however_the_images_are_read(polygons: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    folder = tmp_path / "data" / "images"
    shutil.copytree(polygons.parent, tmp_path / "data")
    pairs = negatives(folder, tmp_path / "negative")
    plain, dataset = build(folder, **more), attached(folder, views=Views(pairs), **more)
    for seed in range(SEEDS):
        assert_same_but_for_the_view(samples(plain, seed), samples(dataset, seed))
    assert len(list(folder.glob("*.npy"))) == (len(dataset) if more == {"cache": "disk"} else 0)
    assert not list((tmp_path / "negative").rglob("*.npy"))


def test_attaching_draws_no_random_number(polygons: Path, partners: dict[str, str]) -> None:
    dataset = build(polygons, cache="ram")
    seed_all(0)
    attach_views(dataset, Views(partners))
    left = random.random(), np.random.rand()
    seed_all(0)
    assert left == (random.random(), np.random.rand())


@pytest.mark.skipif(int(cv2.__version__[0]) < 5, reason="OpenCV 5 has code of its own for 3 channels")
def test_to_stack_both_images_would_change_the_students() -> None:
    """Why each is warped by itself: with 6 channels OpenCV takes another way than with 3."""
    both = np.random.default_rng(0).integers(0, 256, (64, 64, 6), dtype=np.uint8)
    turn = cv2.getRotationMatrix2D((32, 32), 20, 0.8)
    alone = cv2.warpAffine(np.ascontiguousarray(both[..., :3]), turn, (64, 64), borderValue=(114,) * 4)
    together = cv2.warpAffine(both, turn, (64, 64), borderValue=(114,) * 4)[..., :3]
    assert (alone != together).mean() > 0.05


# The teacher's image goes where the student's goes.


@pytest.mark.parametrize("more", [{}, {"rect": True}, {"cache": "ram"}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_without_a_change_of_colours_both_see_the_same(polygons: Path, setting: str, more: dict[str, Any]) -> None:
    dataset = attached(polygons, SETTINGS[setting] | COLOURLESS, **more)
    for sample in each(dataset):
        view = sample[TEACHER_VIEW]
        assert (view.dtype, view.is_contiguous()) == (torch.uint8, True)
        assert torch.equal(view, sample["img"])


def draw_only(self: RandomHSV, labels: dict[str, Any], params: Any = None) -> dict[str, Any]:
    """RandomHSV that takes its random numbers and changes nothing."""
    if self.hgain or self.sgain or self.vgain:
        np.random.uniform(-1, 1, 3)
    return labels


def test_the_teacher_sees_what_the_student_saw_before_its_colours_changed(
    polygons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = list(each(attached(polygons)))
    monkeypatch.setattr(RandomHSV, "apply_image", draw_only)
    changed = 0
    for a, b in zip(each(build(polygons)), got, strict=True):
        assert torch.equal(a["img"], b[TEACHER_VIEW])
        changed += not torch.equal(b["img"], b[TEACHER_VIEW])
    assert changed > len(got) / 2


@pytest.mark.parametrize("more", [{}, {"rect": True}, {"cache": "ram"}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_partner_is_seen_as_a_data_set_of_the_partners_would_show_it(
    polygons: Path, partners: dict[str, str], setting: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = list(each(attached(polygons, SETTINGS[setting], Views(partners), **more)))
    monkeypatch.setattr(RandomHSV, "apply_image", draw_only)
    wanted = each(build(Path(next(iter(partners.values()))).parent, SETTINGS[setting], **more))
    for a, b in zip(wanted, got, strict=True):
        assert torch.equal(a["img"], b[TEACHER_VIEW])
        assert torch.equal(a["bboxes"], b["bboxes"])


def test_pixel_by_pixel_in_mosaics_cut_pasted_and_mirrored(tmp_path: Path) -> None:
    """Nothing is scaled here, so each pixel is one of a file, or border: 114 for both."""
    folder = make_images(tmp_path / "square", polygons=True)
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        cv2.imwrite(str(file), np.random.default_rng(i).integers(150, 256, (IMGSZ, 60, 3), dtype=np.uint8))
    moves = PLAIN | {"mosaic": 0.7, "cutmix": 0.5, "copy_paste": 0.5, "fliplr": 0.5, "flipud": 0.5}
    dataset = attached(folder, moves, Views(negatives(folder, tmp_path / "negative")))
    borders = 0
    for sample in each(dataset):
        student = sample["img"]
        border = student == 114
        borders += int(border.sum())
        assert torch.equal(sample[TEACHER_VIEW], torch.where(border, student, 255 - student))
    assert borders > 0


def test_a_mosaic_of_nine(polygons: Path, partners: dict[str, str]) -> None:
    wanted = build(Path(next(iter(partners.values()))).parent, PLAIN)
    dataset = attached(polygons, PLAIN, Views(partners))
    list(each(dataset)), list(each(wanted))  # a mosaic takes its images from the buffer
    ours, theirs = (Mosaic(one, imgsz=IMGSZ, p=1.0, n=9) for one in (dataset, wanted))
    exchange(ours, module._MOVING, "apply_image", "", "")
    for i in range(len(dataset)):
        seed_all(i)
        a = theirs(wanted.get_image_and_label(i))
        seed_all(i)
        b = ours(dataset.get_image_and_label(i))
        assert b["img"].shape == (2 * IMGSZ, 2 * IMGSZ, 3)
        assert np.array_equal(a["img"], b[TEACHER_VIEW])
        assert not np.array_equal(b["img"], b[TEACHER_VIEW])


def test_close_mosaic_keeps_both(polygons: Path, partners: dict[str, str]) -> None:
    wanted = build(Path(next(iter(partners.values()))).parent)
    dataset = attached(polygons, views=Views(partners, strong=True))
    for one in (wanted, dataset):
        one.close_mosaic(hyp=get_cfg(overrides={"imgsz": IMGSZ, **ALL, **COLOURLESS}))
    assert dataset.transforms[0][0].p == 0
    assert [type(step).__name__ for step in dataset.transforms.transforms[-2:]] == ["Strong", "_Format"]
    for i in range(len(dataset)):
        seed_all(i)
        a = wanted[i]
        seed_all(i)
        b = dataset[i]
        assert torch.equal(a["bboxes"], b["bboxes"])
        assert torch.equal(a["img"], b[TEACHER_VIEW])


# Loaders.


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(polygons: Path, partners: dict[str, str], workers: int) -> None:
    def batches(dataset: Any) -> list[Any]:
        seed_all(0)
        loader = build_dataloader(dataset, 4, workers, shuffle=True, device="cpu")
        found = list(loader)
        loader.close()
        return found

    wanted = batches(build(polygons, ALL | COLOURLESS))
    both = batches(attached(polygons, ALL | COLOURLESS))
    paired = batches(attached(polygons, ALL | COLOURLESS, Views(partners)))
    assert len(wanted) == 2
    for a, b, c in zip(wanted, both, paired, strict=True):
        assert stacked(a) is None
        view, negative = stacked(b), stacked(c)
        assert torch.equal(a["img"], b["img"])
        assert torch.equal(a["img"], c["img"])
        assert torch.equal(a["img"], view)
        assert negative.shape == view.shape == (len(a["im_file"]), 3, IMGSZ, IMGSZ)
        assert negative.dtype == torch.uint8
        assert stacked({TEACHER_VIEW: view}) is view


def test_a_pickled_data_set_gives_the_same_samples(polygons: Path, partners: dict[str, str]) -> None:
    dataset = attached(polygons, views=Views(partners, "dark", strong=True), cache="ram")
    copy = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copy, ViewsDataset)
    for seed in range(3):
        for a, b in zip(samples(dataset, seed)[:-1], samples(copy, seed)[:-1], strict=True):
            assert torch.equal(a["img"], b["img"])
            assert torch.equal(a[TEACHER_VIEW], b[TEACHER_VIEW])


@pytest.mark.shared
def test_photographs(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "bccd416", tmp_path / "data", copy_function=shutil.copyfile)
    folder = tmp_path / "data" / "images" / "val"
    hyp = {"mosaic": 1.0, "degrees": 5.0, "fliplr": 0.5, "mixup": 0.3, "cutmix": 0.3}
    plain = build(folder, hyp, imgsz=160)
    dark = attached(folder, hyp, Views(student_view="dark"), imgsz=160)
    colourless = attached(folder, hyp | COLOURLESS, imgsz=160)
    for i in range(12):
        seen = []
        for one in (plain, dark, colourless):
            seed_all(i)
            seen.append(one[i])
        assert torch.equal(seen[0]["bboxes"], seen[1]["bboxes"])
        assert seen[1]["img"].float().mean() < 0.8 * seen[1][TEACHER_VIEW].float().mean()
        assert torch.equal(seen[2]["img"], seen[2][TEACHER_VIEW])
