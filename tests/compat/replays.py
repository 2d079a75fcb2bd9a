"""A data set small enough to go through every augmentation, and a cache that says of it what its labels say."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset

from yolokd.compat.replay import attach
from yolokd.compat.replay_transforms import KEY
from yolokd.predictions import HeadInfo

IMGSZ = 96
PIXEL = 1e-3 / IMGSZ  # a thousandth
REG_MAX = 4

# Everything at once, and each thing that decides something by boxes alone.
PLAIN = dict(
    mosaic=0.0, mixup=0.0, cutmix=0.0, copy_paste=0.0, degrees=0.0, translate=0.0, scale=0.0, shear=0.0,
    perspective=0.0, flipud=0.0, fliplr=0.0, hsv_h=0.0, hsv_s=0.0, hsv_v=0.0,
)  # fmt: skip
ALL = dict(
    mosaic=0.7, mixup=0.4, cutmix=0.6, copy_paste=0.6, degrees=20.0, translate=0.2, scale=0.5, shear=8.0,
    perspective=0.0008, flipud=0.5, fliplr=0.5, hsv_h=0.1, hsv_s=0.5, hsv_v=0.5,
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "all": ALL,
    "all, pasted from elsewhere": ALL | {"copy_paste_mode": "mixup"},
    "mosaic": PLAIN | {"mosaic": 1.0, "scale": 0.5, "translate": 0.1, "fliplr": 0.5},
    "cutmix": PLAIN | {"cutmix": 1.0, "fliplr": 0.5},
    "copy-paste": PLAIN | {"copy_paste": 1.0, "fliplr": 0.5},
    "copy-paste from elsewhere": PLAIN | {"copy_paste": 1.0, "copy_paste_mode": "mixup", "flipud": 0.5},
    "mixup, turned": PLAIN | {"mixup": 1.0, "degrees": 180.0},
    "flips": PLAIN | {"fliplr": 0.5, "flipud": 0.5},
    "perspective": PLAIN | {"perspective": 0.001, "translate": 0.3},
}


def make_images(root: Path, polygons: bool = False, images: int = 7) -> Path:
    """Images of different shapes with 4 boxes each, each label of a class of its own; the last image is empty."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(images):
        h, w = rng.integers(70, 150, 2)
        cv2.imwrite(str(root / "images" / f"{i}.png"), rng.integers(0, 255, (h, w, 3), dtype=np.uint8))
        lines = []
        for k in range(4 if i < images - 1 else 0):
            x, y = rng.uniform(0, 0.7, 2)
            r, b = np.array([x, y]) + rng.uniform(0.12, 0.3, 2)
            corners = f"{x} {y} {r} {y} {r} {b} {x} {b}"
            lines.append(f"{4 * i + k} " + (corners if polygons else f"{(x + r) / 2} {(y + b) / 2} {r - x} {b - y}"))
        (root / "labels" / f"{i}.txt").write_text("\n".join(lines))
    return root / "images"


def build(folder: Path, hyp: dict[str, Any] | None = None, imgsz: int = IMGSZ, **more: Any) -> Any:
    """Ultralytics' training data set of a folder."""
    data = {"names": {i: str(i) for i in range(100)}, "nc": 100, "channels": 3}
    args = get_cfg(overrides={"imgsz": imgsz, "task": "detect", **(hyp or ALL), **more})
    return build_yolo_dataset(args, str(folder), 4, data, mode="train")


class LabelCache:
    """Says of each image what its labels say, after as many boxes of its own of the mirror image."""

    def __init__(self, dataset: Any, bins: bool = True, stride: float = 8.0) -> None:
        self.info = HeadInfo({i: str(i) for i in range(5)}, (8, 16, 32), (4, 4, 4), REG_MAX, False)
        self.imgsz = IMGSZ
        self.spans: dict[tuple[str, bool], range] = {}
        self.label: list[int] = []  # of each row, the class index of the label that it repeats
        boxes: list[Any] = []
        for label in dataset.labels:
            x, y, w, h = label["bboxes"].T
            for mirrored in (True, False):
                left, right = (1 - x - w / 2, 1 - x + w / 2) if mirrored else (x - w / 2, x + w / 2)
                self.spans[Path(label["im_file"]).stem, mirrored] = range(len(boxes), len(boxes) + len(x))
                boxes += list(np.stack([left, y - h / 2, right, y + h / 2], 1))
                self.label += label["cls"][:, 0].astype(int).tolist()
        self.table = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self.stride = stride
        self.bins = bins

    def rows(self, image_hash: str, mirrored: bool) -> range:
        return self.spans[image_hash, mirrored]

    def boxes(self, rows: range) -> Any:
        return self.table[rows.start : rows.stop]

    def mirrored(self, row: int) -> bool:
        return any(row in span for (_, mirrored), span in self.spans.items() if mirrored)

    def take(self, ids: Any) -> Any:
        """Scores that count the rows; anchors in the middle of the boxes; bin k of the left edge is 100 * row + k."""
        n, boxes = len(ids), self.table[ids]
        bins = (100 * ids[:, None] + np.arange(4 * REG_MAX)).astype(np.float32)
        return SimpleNamespace(
            scores=np.repeat(ids[:, None], 5, 1).astype(np.float32),
            bins=bins if self.bins else None,
            points=((boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.float32),
            strides=np.full(n, self.stride, dtype=np.float32),
        )


def hashes(dataset: Any) -> dict[str, str]:
    return {file: Path(file).stem for file in dataset.im_files}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def corners(sample: dict[str, Any]) -> np.ndarray:
    """The ground truth of a sample as (x1, y1, x2, y2), normalised."""
    x, y, w, h = sample["bboxes"].numpy().astype(np.float64).T
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def attached(folder: Path, hyp: dict[str, Any] | None = None, **more: Any) -> tuple[Any, LabelCache]:
    dataset = build(folder, hyp, **more)
    cache = LabelCache(dataset)
    attach(dataset, cache, hashes(dataset))
    return dataset, cache


def assert_same_place(sample: dict[str, Any], cache: LabelCache) -> int:
    """Each soft box lies on a ground-truth box of its label, each of these under one soft box."""
    table, truth, labels = sample[KEY], corners(sample), sample["cls"].numpy()[:, 0]
    assert len(table) == len(truth)
    left = list(range(len(truth)))
    for row, box in zip(table[:, 0].astype(int), table[:, 1:5], strict=True):
        same = [i for i in left if labels[i] == cache.label[row]]
        distance, best = min((np.abs(truth[i] - box).max(), i) for i in same)
        assert distance < PIXEL, (cache.label[row], truth[best] * IMGSZ, box * IMGSZ)
        left.remove(best)
    return len(truth)


def assert_same_sample(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == b[key].dtype
            assert torch.equal(value, b[key]), key
        else:
            assert np.array_equal(value, b[key]), key
