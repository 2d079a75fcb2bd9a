"""Soft boxes go where ground truth goes, through every augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.data.augment import BaseTransform, Compose, Format, LetterBox, Mosaic, RandomPerspective

from tests.compat.replays import (
    ALL,
    IMGSZ,
    PIXEL,
    PLAIN,
    SETTINGS,
    LabelCache,
    assert_same_place,
    attached,
    build,
    hashes,
    seed_all,
)
from yolokd.compat.replay import Landed, ReplayDataset, attach, landed
from yolokd.compat.replay_carried import Carried
from yolokd.compat.replay_transforms import KEY, carry
from yolokd.errors import UserError


@pytest.mark.parametrize("kind", ["boxes", "polygons"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_soft_box_lands_where_the_same_label_lands(setting: str, kind: str, request: pytest.FixtureRequest) -> None:
    dataset, cache = attached(request.getfixturevalue(kind), SETTINGS[setting])
    found = 0
    for seed in range(12):
        seed_all(seed)
        for i in range(len(dataset)):
            found += assert_same_place(dataset[i], cache)
    assert found > 100


def side(sample: dict[str, Any], cache: LabelCache) -> set[bool]:
    return {cache.mirrored(int(row)) for row in sample[KEY][:, 0]}


def test_what_ended_mirrored_has_the_rows_of_the_mirror_image(boxes: Path) -> None:
    as_it_was, cache = attached(boxes, PLAIN | {"flipud": 1.0})
    flipped, _ = attached(boxes, PLAIN | {"fliplr": 1.0})
    assert side(as_it_was[0], cache) == {False}
    assert side(flipped[0], cache) == {True}


def test_what_is_pasted_flipped_has_the_rows_of_the_mirror_image(polygons: Path) -> None:
    dataset, cache = attached(polygons, PLAIN | {"copy_paste": 1.0})
    samples = [dataset[i] for i in range(6)]
    assert any(len(sample[KEY]) > 4 for sample in samples)
    for sample in samples:
        rows = [int(row) for row in sample[KEY][:, 0]]
        assert [cache.mirrored(row) for row in rows] == [False] * 4 + [True] * (len(rows) - 4)


def test_mirror_rows_land_where_the_teacher_saw_them(boxes: Path) -> None:
    """The mirror image's detections are others than the image's: a box at the left of it lands at the left."""
    dataset, cache = attached(boxes, PLAIN | {"fliplr": 1.0})
    cache.table[:] = [0.0, 0.1, 0.2, 0.4]
    sample = dataset[0]
    h, w = sample["ori_shape"]
    side_x, side_y = w / max(h, w), h / max(h, w)
    # RandomPerspective centres the image in the square.
    wanted = [(1 - side_x) / 2 + box for box in (0, 0.2 * side_x)], [(1 - side_y) / 2 + side_y * y for y in (0.1, 0.4)]
    assert np.allclose(sample[KEY][:, [1, 3]], wanted[0], atol=1.5 / IMGSZ)  # sides are rounded to pixels
    assert np.allclose(sample[KEY][:, [2, 4]], wanted[1], atol=1.5 / IMGSZ)


def assert_gain(at: Landed, cache: LabelCache) -> None:
    """Gain and shift bring the stored box to where it would be whole; what has been cut off is inside of that."""
    stored = torch.from_numpy(cache.table)[at.rows]
    ends = stored.view(-1, 2, 2) * at.gain[:, None] + at.shift[:, None]
    moved = torch.cat([ends.amin(1), ends.amax(1)], 1)
    off = (moved - at.boxes).abs() * IMGSZ
    assert (off[at.edges] < 0.06).all()
    assert (off[~at.edges] > 0.04).all()
    assert (at.boxes[:, :2] >= moved[:, :2] - PIXEL).all()
    assert (at.boxes[:, 2:] <= moved[:, 2:] + PIXEL).all()
    assert (at.gain[:, 0] > 0).all()


def test_gain_and_shift_lead_from_the_stored_box_to_the_landed_one(boxes: Path) -> None:
    hyp = PLAIN | {"mosaic": 0.5, "cutmix": 0.5, "scale": 0.5, "translate": 0.2, "fliplr": 0.5, "flipud": 0.5}
    dataset, cache = attached(boxes, hyp)
    cut, whole = 0, 0
    for seed in range(20):
        seed_all(seed)
        batch = dataset.collate_fn([dataset[i] for i in range(4)])
        at = landed(batch)
        assert_gain(at, cache)
        whole, cut = whole + int(at.edges.sum()), cut + int((~at.edges).sum())
    assert cut > 20
    assert whole > 100


@pytest.mark.parametrize("turned", [{"degrees": 30.0}, {"shear": 10.0}, {"perspective": 0.001}])
def test_a_turned_image_has_no_gain(boxes: Path, turned: dict[str, float]) -> None:
    dataset, _ = attached(boxes, PLAIN | turned)
    assert (dataset[0][KEY][:, 9:11] == 0).all()
    straight, _ = attached(boxes, PLAIN)
    assert (straight[0][KEY][:, 9:11] != 0).all()


def soft(*boxes: list[float]) -> Carried:
    """Boxes of an image of 100 x 100 pixels; row k is box k."""
    table = np.array(boxes).reshape(-1, 4) / 100
    return Carried.place(np.arange(len(boxes)), table, np.zeros(len(boxes), bool), (100, 100), (100, 100), True)


def truth(*boxes: list[float]) -> dict[str, Any]:
    return {**soft(*boxes).labels(), "img": np.zeros((100, 100, 3), np.uint8)}


def test_cutmix_hides_what_only_the_teacher_saw(boxes: Path) -> None:
    """It spares ground truth of the first image; of the second it brings along what lies in the area."""
    dataset, _ = attached(boxes)
    cutmix = dataset.transforms[2]
    other = truth([40, 40, 60, 60]) | {KEY: soft([40, 40, 60, 60], [45, 45, 50, 50], [80, 80, 90, 90])}
    labels = truth([0, 60, 20, 90]) | {"mix_labels": [other]}
    labels[KEY] = soft([0, 60, 20, 90], [10, 10, 30, 30], [45, 10, 55, 30], [10, 10, 80, 90])
    params = {"area": np.array([0, 0, 50, 50], np.float32), "indexes2": np.array([0]), "w": 100, "h": 100}
    table = cutmix.apply_instances(labels, params)[KEY].land(100, 100)
    # Box 1 lies under the area, half of box 2, less than a third of box 3.
    assert (table[:, 0]).tolist() == [0, 3, 0, 1]
    assert np.allclose(table[2, 1:5] * 100, [40, 40, 50, 50])
    assert table[2, 5:9].tolist() == [1, 1, 0, 0]
    assert table[3, 5:9].tolist() == [1, 1, 1, 1]


def test_copy_paste_brings_along_what_speaks_of_the_pasted_object(polygons: Path) -> None:
    dataset, _ = attached(polygons, ALL | {"copy_paste_mode": "mixup"})
    paste = dataset.transforms[0][2]
    objects = truth([0, 0, 20, 20], [60, 60, 80, 80])["instances"]
    near = soft([2, 0, 20, 20], [0, 0, 9, 9], [61, 60, 80, 80], [30, 30, 50, 50])
    labels = truth([30, 70, 40, 80]) | {"mix_labels": [{KEY: near}]}
    labels[KEY] = soft([30, 70, 40, 80], [60, 60, 70, 80], [50, 50, 90, 90])
    params = {
        "instances": labels["instances"],
        "instances2": objects,
        "selected": np.array([1]),
        "im_new": np.zeros((100, 100), np.uint8),
        "labels2_cls": np.zeros((2, 1)),
    }
    table = paste.apply_instances(labels, params)[KEY].land(100, 100)
    # Box 1 hides behind the pasted object; of box 2 a quarter.
    assert (table[:, 0]).tolist() == [0, 2, 2]
    assert np.allclose(table[2, 1:5] * 100, [61, 60, 80, 80])


def test_the_other_mosaic_and_the_letterbox(boxes: Path) -> None:
    dataset, cache = attached(boxes, PLAIN)
    end = Format(batch_idx=True)
    nine = Compose([Mosaic(dataset, IMGSZ, p=1.0, n=9), RandomPerspective(scale=0.5, size=(IMGSZ, IMGSZ)), end])
    boxed = Compose([LetterBox((80, 130)), Format()])
    for steps in (nine, boxed):
        carry(steps)
        for seed in range(6):
            seed_all(seed)
            sample = steps(dataset.get_image_and_label(seed % len(dataset)))
            assert_same_place(sample, cache)
            assert_gain(landed({KEY: (sample[KEY],)}), cache)


class Unheard(BaseTransform):  # type: ignore[misc]
    pass


def test_what_cannot_be_followed_is_refused_by_name(boxes: Path) -> None:
    dataset = build(boxes)
    dataset.transforms.insert(0, Unheard())
    with pytest.raises(UserError, match="Unheard"):
        attach(dataset, LabelCache(dataset), hashes(dataset))
    assert type(dataset) is not ReplayDataset


def test_a_transform_that_is_built_otherwise_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(LetterBox, "apply_instances")
    with pytest.raises(UserError, match="LetterBox"):
        carry(Compose([LetterBox(), Format()]))


def test_augmentations_that_move_boxes_are_refused(boxes: Path) -> None:
    dataset = build(boxes)
    (step,) = [t for t in dataset.transforms.transforms if type(t).__name__ == "Albumentations"]
    step.transform, step.contains_spatial = (lambda **kw: kw), False
    carry(dataset.transforms)
    step.contains_spatial = True
    with pytest.raises(UserError, match="Albumentations"):
        carry(dataset.transforms)
