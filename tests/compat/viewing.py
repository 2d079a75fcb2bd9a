"""Data sets that show the teacher another image, and what is asked of their samples."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset

from tests.compat.replays import ALL, IMGSZ, assert_same_sample, seed_all
from yolokd.compat.views import TEACHER_VIEW, Views, attach_views

COLOURLESS = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
SEEDS = 3


def build(folder: Path, hyp: dict[str, Any] | None = None, channels: int = 3, mode: str = "train", **more: Any) -> Any:
    data = {"names": {i: str(i) for i in range(100)}, "nc": 100, "channels": channels}
    args = get_cfg(overrides={"imgsz": IMGSZ, "task": "detect", **(ALL if hyp is None else hyp), **more})
    return build_yolo_dataset(args, str(folder), 4, data, mode=mode, rect=mode == "val")


def attached(folder: Path, hyp: dict[str, Any] | None = None, views: Views | None = None, **more: Any) -> Any:
    dataset = build(folder, hyp, **more)
    attach_views(dataset, views or Views())
    return dataset


def samples(dataset: Any, seed: int) -> list[dict[str, Any]]:
    """All samples after one seed, one after the other; the last entry tells where the random streams stand."""
    seed_all(seed)
    found = [dataset[i] for i in range(len(dataset))]
    return [*found, {"streams": torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()])}]


def each(dataset: Any) -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        yield from samples(dataset, seed)[:-1]


def assert_same_but_for_the_view(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> None:
    assert len(wanted) == len(got)
    for a, b in zip(wanted, got, strict=True):
        b.pop(TEACHER_VIEW, None)
        assert_same_sample(a, b)


def negatives(images: Path, root: Path) -> dict[str, str]:
    """A copy of a data set in which each image is its negative, and which image belongs to which."""
    shutil.copytree(images.parent, root, ignore=shutil.ignore_patterns("*.cache", "*.npy"))
    pairs = {}
    for file in sorted(images.glob("*.png")):
        pairs[str(file)] = str(root / "images" / file.name)
        cv2.imwrite(pairs[str(file)], 255 - cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    return pairs
