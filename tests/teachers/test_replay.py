"""The stored detections of a batch, where its augmentation has put them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.compat.replays import IMGSZ, PLAIN, REG_MAX, LabelCache, build, corners, hashes, make_images, seed_all
from yolokd.compat.boxes import decode, encode, expected_distances
from yolokd.compat.replay import attach, landed
from yolokd.predictions import SoftDetections
from yolokd.teachers.replay import ReplayTeacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("boxes"))


def ask(
    folder: Path, hyp: dict[str, Any], images: tuple[int, ...] = (0, 1), imgsz: int = 0, **cache: Any
) -> tuple[SoftDetections, dict[str, Any], LabelCache]:
    """The teacher's detections of a batch that comes to the student ``imgsz`` pixels wide."""
    dataset = build(folder, PLAIN | hyp)
    said = LabelCache(dataset, **cache)
    attach(dataset, said, hashes(dataset))
    seed_all(0)
    batch = dataset.collate_fn([dataset[i] for i in images])
    if imgsz:
        batch["img"] = torch.zeros(len(images), 3, imgsz, imgsz)  # what multi_scale does
    answer = ReplayTeacher(said, (8, 16, 32))(batch)
    assert answer.detections is not None
    assert answer.scores is answer.boxes is answer.feats is None
    return answer.detections, batch, said


@pytest.mark.parametrize("imgsz", [0, 64, 160])
def test_boxes_are_pixels_of_the_students_input(folder: Path, imgsz: int) -> None:
    said, batch, _ = ask(folder, {"mosaic": 1.0, "scale": 0.3, "fliplr": 0.5}, (0, 1, 2), imgsz)
    assert said.image.tolist() == batch["batch_idx"].long().tolist()
    assert np.allclose(said.boxes, corners(batch) * (imgsz or IMGSZ), atol=1e-3)
    assert said.boxes.dtype == said.scores.dtype == torch.float32
    assert said.image.dtype == torch.int64
    assert said.edges.dtype == torch.bool
    assert said.scores.shape == (len(said.boxes), 5)


def loaded_stride(folder: Path, stride: float) -> float:
    """Pixels of the original image 0 that become ``stride`` where it is loaded at IMGSZ."""
    shape = build(folder).labels[0]["shape"]
    return stride * max(shape) / IMGSZ


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_bins_hold_where_the_image_was_only_moved(folder: Path, stride: int) -> None:
    said, _, cache = ask(folder, {"translate": 0.1}, (0,), stride=loaded_stride(folder, stride))
    assert said.strides is not None
    assert said.points is not None
    assert said.bins is not None
    assert said.strides.tolist() == [stride] * len(said.boxes)
    rows = said.scores[:, :1].long()  # as the fake has it
    assert torch.equal(said.bins, 100.0 * rows + torch.arange(4 * REG_MAX))
    uncut = said.edges.all(1)
    assert uncut.any()
    middle = (said.boxes[:, :2] + said.boxes[:, 2:]) / 2
    assert torch.allclose(said.points[uncut], middle[uncut], atol=1e-2)
    assert not cache.mirrored(int(rows[0]))


@pytest.mark.parametrize(
    ("hyp", "imgsz"),
    [({"scale": 0.5}, 0), ({"degrees": 20.0}, 0), ({"shear": 9.0}, 0), ({}, 128), ({"degrees": 2.0}, 0)],
)
def test_bins_do_not_hold_where_it_was_scaled_or_turned(folder: Path, hyp: dict[str, float], imgsz: int) -> None:
    said, _, _ = ask(folder, hyp, (0,), imgsz, stride=loaded_stride(folder, 8))
    assert said.strides is not None
    assert (said.strides == 0).all()
    assert len(said.boxes)


def test_bins_do_not_hold_where_only_one_axis_kept_its_scale(folder: Path) -> None:
    dataset = build(folder, PLAIN)
    cache = LabelCache(dataset, stride=loaded_stride(folder, 8))
    attach(dataset, cache, hashes(dataset))
    batch = dataset.collate_fn([dataset[0]]) | {"img": torch.zeros(1, 3, IMGSZ, 2 * IMGSZ)}
    said = ReplayTeacher(cache, (8, 16, 32))(batch).detections
    assert said is not None
    assert said.strides is not None
    assert said.strides.tolist() == [0] * 4


def test_a_stored_bin_can_become_another_level_of_the_student(folder: Path) -> None:
    said, _, _ = ask(folder, {}, (0,), IMGSZ // 2, stride=loaded_stride(folder, 32))
    assert said.strides is not None
    assert (said.strides == 16).all()


@pytest.mark.parametrize("flip", ["fliplr", "flipud"])
def test_a_flip_swaps_what_it_must(folder: Path, flip: str) -> None:
    """Left and right come swapped from the mirror image's own rows; top and bottom have to be swapped here."""
    said, _, cache = ask(folder, {flip: 1.0}, (0,), stride=loaded_stride(folder, 8))
    assert said.strides is not None
    assert said.points is not None
    assert said.bins is not None
    rows = said.scores[:, 0].long()
    assert all(cache.mirrored(int(row)) == (flip == "fliplr") for row in rows)
    edges = (said.bins - 100.0 * rows[:, None]).view(-1, 4, REG_MAX)
    order = [0, 1, 2, 3] if flip == "fliplr" else [0, 3, 2, 1]
    assert torch.equal(edges[0], torch.arange(4.0 * REG_MAX).view(4, REG_MAX)[order])
    middle = (said.boxes[:, :2] + said.boxes[:, 2:]) / 2
    assert torch.allclose(said.points, middle, atol=1e-2)
    assert (said.strides == 8).all()


class Pointed(LabelCache):
    """Bins that decode to the stored boxes, from an anchor at a quarter of the box."""

    def take(self, ids: Any) -> Any:
        said = super().take(ids)
        h, w = self.shape
        boxes = torch.from_numpy(self.table[ids]) * torch.tensor([w, h, w, h])
        points = boxes[:, :2] + 0.25 * (boxes[:, 2:] - boxes[:, :2])
        strides = torch.full((len(ids),), self.stride)
        distances = encode(boxes, points, strides).clamp(max=REG_MAX - 1.01)
        low = distances.floor()
        sure = torch.zeros(len(ids), 4, REG_MAX)
        sure.scatter_(2, low.long()[..., None], (1 - distances + low)[..., None])
        sure.scatter_(2, low.long()[..., None] + 1, (distances - low)[..., None])
        said.bins = (sure + 1e-12).log().flatten(1).numpy()
        said.points = (points / torch.tensor([w, h])).numpy()
        return said


@pytest.mark.parametrize(
    "hyp", [{}, {"fliplr": 1.0}, {"flipud": 1.0}, {"fliplr": 1.0, "flipud": 1.0, "translate": 0.2}]
)
def test_the_bins_decode_to_the_box(folder: Path, hyp: dict[str, float]) -> None:
    dataset = build(folder, PLAIN | hyp)
    cache = Pointed(dataset, stride=loaded_stride(folder, 32))
    cache.shape = dataset.labels[0]["shape"]
    attach(dataset, cache, hashes(dataset))
    seed_all(1)
    said = ReplayTeacher(cache, (8, 16, 32))(dataset.collate_fn([dataset[0]])).detections
    assert said is not None
    assert said.bins is not None
    assert said.points is not None
    assert said.strides is not None
    assert (said.strides == 32).all()
    decoded = decode(expected_distances(said.bins), said.points, said.strides)
    off = (decoded - said.boxes).abs()[said.edges]
    assert len(off) >= 8
    assert off.max() < 1  # a pixel over the whole image: its sides are rounded when it is loaded


def test_a_teacher_without_bins(folder: Path) -> None:
    said, _, _ = ask(folder, {}, bins=False)
    assert said.bins is said.points is said.strides is None
    assert len(said.boxes)


def test_images_in_which_nothing_was_seen(folder: Path) -> None:
    said, _, _ = ask(folder, {"flipud": 1.0}, (6, 6))
    assert said.boxes.shape == (0, 4)
    assert said.scores.shape == (0, 5)
    assert said.bins is not None
    assert said.bins.shape == (0, 4 * REG_MAX)
    assert said.strides is not None
    assert said.strides.shape == (0,)


def test_it_says_what_it_is(folder: Path) -> None:
    cache = LabelCache(build(folder))
    teacher = ReplayTeacher(cache, (8, 16, 32), "cache/")
    assert teacher.info is cache.info
    assert teacher.name == "cache/"
    teacher.to_precision(torch.bfloat16)
    with pytest.raises(ValueError, match="not attached"):
        teacher({"img": torch.zeros(1, 3, 64, 64)})


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images that are three times as wide as high, and four that are so much higher."""
    root = tmp_path_factory.mktemp("oblong")
    make_images(root, images=9)
    (root / "images" / "8.png").unlink()
    for i in range(8):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.zeros((192, 64, 3) if i % 2 else (64, 192, 3), np.uint8))
    return root / "images"


@pytest.mark.parametrize("hyp", [{}, {"fliplr": 1.0}, {"flipud": 1.0, "translate": 0.1}])
@pytest.mark.parametrize("wide", [True, False])
def test_images_that_are_not_square(oblong: Path, hyp: dict[str, float], wide: bool) -> None:
    """rect=True: a batch has the shape that its images need; boxes, anchors and bins are pixels of that."""
    dataset = build(oblong, PLAIN | hyp, rect=True)
    cache = Pointed(dataset, stride=32 * 192 / IMGSZ)
    cache.shape = (64, 192) if wide else (192, 64)
    attach(dataset, cache, hashes(dataset))
    seed_all(1)
    batch = dataset.collate_fn([dataset[i] for i in (range(4) if wide else range(4, 8))])
    height, width = batch["img"].shape[2:]
    assert (width > height) == wide
    said = ReplayTeacher(cache, (8, 16, 32))(batch).detections
    assert said is not None
    assert np.allclose(said.boxes, corners(batch) * ([width, height] * 2), atol=1e-3)
    assert said.bins is not None
    assert said.points is not None
    assert said.strides is not None
    assert (said.strides == 32).all()
    decoded = decode(expected_distances(said.bins), said.points, said.strides)
    off = (decoded - said.boxes).abs()[said.edges]
    assert len(off) > 30
    assert off.max() < 1


def test_rows_beyond_what_a_float32_can_count_keep_their_number(folder: Path) -> None:
    """A cache may hold more than 16.7 million detections: no row is rounded to its neighbour on its way."""
    base = (1 << 24) + 1

    class Far(LabelCache):
        def rows(self, image_hash: str, mirrored: bool) -> range:
            near = super().rows(image_hash, mirrored)
            return range(near.start + base, near.stop + base)

        def boxes(self, rows: range) -> Any:
            return super().boxes(range(rows.start - base, rows.stop - base))

    dataset = build(folder)  # every augmentation
    cache = Far(dataset)
    attach(dataset, cache, hashes(dataset))
    near = build(folder)
    attach(near, LabelCache(near), hashes(near))
    found = []
    for each in (dataset, near):
        seed_all(3)
        found.append(landed(each.collate_fn([each[i] for i in range(len(each))])).rows)
    assert len(found[0]) > 20
    assert torch.equal(found[0], found[1] + base)
