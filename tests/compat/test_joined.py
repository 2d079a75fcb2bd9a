"""Images with labels and without in one loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import RandomSampler
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset

from tests.compat.replays import make_images
from yolokd.compat.dataset import check_data
from yolokd.compat.joined import UNLABELLED, JoinedDataset, Spread, flags, shares, spread, unlabelled_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("joined")
    images = make_images(root)
    names = {i: str(i) for i in range(100)}
    (root / "data.yaml").write_text(yaml.safe_dump({"train": str(images), "val": str(images), "names": names}))
    return root / "data.yaml"


def joined(data: Path, ratio: float | None = None, **args: Any) -> JoinedDataset:
    cfg = get_cfg(overrides={"imgsz": 64, "task": "detect", "data": str(data), **args})
    checked = check_data(str(data), "train")
    labelled = build_yolo_dataset(cfg, checked["train"], 4, checked, mode="train")
    twice = [*labelled.im_files, *labelled.im_files]
    return JoinedDataset(labelled, unlabelled_dataset(twice, cfg, checked, 4, 32), ratio)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "ratio", "expected"),
    [
        (45, 400, 4, (100, 400)),
        (400, 45, 1, (400, 400)),
        (45, 400, None, (45, 400)),
        (0, 7, 1, (0, 7)),
        (10, 5, 0.5, (10, 5)),
    ],
)
def test_an_epoch_shows_every_image(
    labelled: int, unlabelled: int, ratio: float | None, expected: tuple[int, int]
) -> None:
    assert shares(labelled, unlabelled, ratio) == expected


def test_label_files_beside_unlabelled_images_are_not_read(data: Path) -> None:
    before = sorted(data.parent.rglob("*"))
    both = joined(data)
    assert any(len(label["cls"]) for label in both.labelled.labels)
    assert not any(len(label["cls"]) for label in both.unlabelled.labels)
    new = [file for file in data.parent.rglob("*") if file not in before and file.suffix != ".cache"]
    assert new == []
    samples = [both[i] for i in range(len(both))]
    count = len(both.labelled)
    assert [sample[UNLABELLED] for sample in samples] == [False] * count + [True] * 2 * count
    assert all(len(sample["cls"]) == 0 for sample in samples[count:])


def test_mosaics_are_of_one_kind(data: Path) -> None:
    """With mosaic always on, no label of another image gets into an image without labels, nor the other way round."""
    both = joined(data, mosaic=1.0, mixup=0.5)
    count = len(both.labelled)
    assert all(not len(both[i]["cls"]) for i in range(count, len(both)))
    both.close_mosaic(get_cfg(overrides={"imgsz": 64}))
    assert both.labelled.transforms.transforms[0].transforms[0].p == 0
    assert both.unlabelled.transforms.transforms[0].transforms[0].p == 0
    assert both[count]["img"].shape == (3, 64, 64)


def test_every_batch_has_its_share(data: Path) -> None:
    both = joined(data, ratio=1.0)
    loader = spread(build_dataloader(both, 4, 0, shuffle=True, rank=-1))
    for _ in range(2):
        seen = []
        for batch in loader:
            assert abs(sum(batch[UNLABELLED]) - len(batch[UNLABELLED]) / 2) <= 1
            seen += list(batch["im_file"])
        assert len(seen) == len(both)
    assert set(seen) == set(both.im_files)


def test_the_order_is_random_and_of_every_kind_complete(data: Path) -> None:
    both = joined(data)
    torch.manual_seed(0)
    orders = [list(Spread(RandomSampler(both), both)) for _ in range(2)]
    assert orders[0] != orders[1]
    assert [sorted(order) for order in orders] == [list(range(len(both)))] * 2


def test_workers_bring_the_flags_along(data: Path) -> None:
    both = joined(data)
    for batch in spread(build_dataloader(both, 4, 2, shuffle=True, rank=-1)):
        there = flags(batch)
        assert there is not None
        labelled = (~there).nonzero().flatten().tolist()
        assert set(batch["batch_idx"].int().tolist()) <= set(labelled)


def test_a_batch_of_labelled_images_has_no_flags() -> None:
    assert flags({}) is None
    assert flags({UNLABELLED: (False, False)}) is None
    assert torch.equal(flags({UNLABELLED: (False, True)}), torch.tensor([False, True]))  # type: ignore[arg-type]
