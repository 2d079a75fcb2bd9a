"""A data set that brings soft boxes along, and nobody notices that they are there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader

from tests.compat.replays import (
    ALL,
    IMGSZ,
    PLAIN,
    SETTINGS,
    LabelCache,
    assert_same_place,
    assert_same_sample,
    attached,
    build,
    hashes,
    seed_all,
)
from yolokd.compat.replay import ReplayDataset, attach, landed
from yolokd.compat.replay_transforms import KEY
from yolokd.errors import UserError


@pytest.mark.parametrize("kind", ["boxes", "polygons"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_images_labels_and_random_stream_are_those_of_a_run_without(
    setting: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    plain = build(folder, SETTINGS[setting])
    dataset, cache = attached(folder, SETTINGS[setting])
    cache.table[:] = np.random.default_rng(3).uniform([0, 0, 0.4, 0.4], [0.4, 0.4, 1, 1], cache.table.shape)  # others
    for seed in range(8):
        seed_all(seed)
        wanted = [plain[i] for i in range(len(plain))] + [torch.rand(1), np.random.rand(1)]
        seed_all(seed)
        got = [dataset[i] for i in range(len(dataset))] + [torch.rand(1), np.random.rand(1)]
        assert wanted[-2:] == got[-2:]
        for a, b in zip(wanted[:-2], got[:-2], strict=True):
            b.pop(KEY)
            assert_same_sample(a, b)


def test_the_data_set_itself_is_not_touched(boxes: Path) -> None:
    before = build(boxes)
    dataset, _ = attached(boxes)
    assert len(before.labels) == len(dataset.labels)
    for a, b in zip(before.labels, dataset.labels, strict=True):
        assert a.keys() == b.keys()
        assert np.array_equal(a["cls"], b["cls"])
        assert np.array_equal(a["bboxes"], b["bboxes"])


def test_close_mosaic_keeps_carrying(boxes: Path) -> None:
    dataset, cache = attached(boxes)
    dataset.close_mosaic(hyp=get_cfg(overrides={"imgsz": IMGSZ, **ALL}))
    assert dataset.transforms[0][0].p == 0
    for i in range(len(dataset)):
        assert_same_place(dataset[i], cache)


@pytest.mark.parametrize("more", [{"rect": True}, {"cache": "ram"}, {"single_cls": True}, {"classes": [0, 1, 5]}])
def test_other_ways_to_read_a_data_set(boxes: Path, more: dict[str, Any]) -> None:
    plain = build(boxes, **more)
    dataset, cache = attached(boxes, **more)
    for seed in range(4):
        seed_all(seed)
        wanted = [plain[i] for i in range(len(plain))]
        seed_all(seed)
        for a, b in zip(wanted, [dataset[i] for i in range(len(dataset))], strict=True):
            if "single_cls" not in more:
                assert_same_place(b, cache)
            b.pop(KEY)
            assert_same_sample(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_run_without(boxes: Path, workers: int) -> None:
    def batches(dataset: Any) -> list[Any]:
        seed_all(0)
        loader = build_dataloader(dataset, 4, workers, shuffle=True, device="cpu")
        found = list(loader)
        loader.close()
        return found

    dataset, _ = attached(boxes)
    wanted, got = batches(build(boxes)), batches(dataset)
    assert len(got) == 2
    for a, b in zip(wanted, got, strict=True):
        at = landed(b)
        assert at.image.tolist() == b["batch_idx"].tolist()  # boxes: nothing is pasted, so the order is the same
        b.pop(KEY)
        assert_same_sample(a, b)


def test_a_pickled_data_set_gives_the_same_samples(boxes: Path) -> None:
    dataset, _ = attached(boxes)
    copy = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copy, ReplayDataset)
    for seed in range(3):
        seed_all(seed)
        a = dataset[seed]
        seed_all(seed)
        b = copy[seed]
        assert np.array_equal(a.pop(KEY), b.pop(KEY))
        assert_same_sample(a, b)


def test_an_image_without_any_soft_box(boxes: Path) -> None:
    dataset, _ = attached(boxes, PLAIN)
    empty = len(dataset) - 1
    batch = dataset.collate_fn([dataset[empty], dataset[0]])
    at = landed(batch)
    assert at.image.tolist() == [1] * 4
    none = landed(dataset.collate_fn([dataset[empty]]))
    assert none.rows.shape == (0,)
    assert none.boxes.shape == (0, 4)


def test_another_kind_of_data_set_is_refused(boxes: Path) -> None:
    dataset = build(boxes)
    cache = LabelCache(dataset)
    dataset.__class__ = type("Mine", (type(dataset),), {})
    with pytest.raises(UserError, match="Mine"):
        attach(dataset, cache, hashes(dataset))


def test_an_image_that_the_cache_does_not_know_is_named(boxes: Path) -> None:
    dataset = build(boxes)
    known = hashes(dataset)
    missing = dataset.im_files[2]
    del known[missing]
    with pytest.raises(UserError, match="1 of the training images") as error:
        attach(dataset, LabelCache(dataset), known)
    assert missing in str(error.value)


def test_a_batch_of_another_data_set(boxes: Path) -> None:
    dataset = build(boxes)
    with pytest.raises(ValueError, match="not attached"):
        landed(dataset.collate_fn([dataset[0]]))
