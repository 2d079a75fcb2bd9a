"""Comparisons that were never trained, with detections whose AP a person can compute.

Each image holds one object. A run finds it, or finds nothing: after `hits` of `IMAGES` its AP is `ap_of(hits)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolokd.compat.validation import ImageResult
from yolokd.evaluation.annotations import from_labels
from yolokd.evaluation.arms import Arm
from yolokd.evaluation.coco import coco_scores
from yolokd.evaluation.comparison import RESULT, TEACHER, Comparison, detections
from yolokd.evaluation.detections import save
from yolokd.evaluation.splits import EvalSplit

IMAGES = 10
NAMES = {0: "cat", 1: "dog"}
MACHINE = {"cpu": "a processor", "cores": 2, "memory_gb": 4.0, "gpu": None}
VERSIONS = {"python": "3.11", "torch": "2.15.0", "ultralytics": "8.4.190", "yolokd": "0.1.0"}
HEADER = "epoch,time,train/box_loss,metrics/mAP50-95(B)"


def ap_of(hits: int) -> float:
    """Of the 101 recalls 0, .01, ... those up to hits / IMAGES are reached, at precision 1.

    Not of 7: pycocotools' recall .70 is one bit above 7 / 10.
    """
    return (100 * hits // IMAGES + 1) / 101 if hits else 0.0


def found(folder: Path, hits: Sequence[int], score: float = 0.9) -> list[ImageResult]:
    """Images of one class, each with one object; it is found in those of these indices."""
    box = np.array([[10.0, 10.0, 40.0, 30.0]])
    images = []
    for i in range(IMAGES):
        there = int(i in hits)
        images.append(
            ImageResult(
                file=folder / "images" / f"{i}.jpg",
                height=48,
                width=64,
                boxes=box[:there],
                scores=np.full(there, score),
                classes=np.zeros(there, np.int64),
                true_boxes=box,
                true_classes=np.zeros(1, np.int64),
            )
        )
    return images


def begin(
    folder: Path, arms: Sequence[str] = ("plain", "native", "yolokd"), seeds: int = 3, teacher: bool = True, **more: Any
) -> Comparison:
    """Write a manifest, and images of noise."""
    (folder / "images").mkdir(parents=True)
    for i in range(IMAGES):
        noise = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.jpg"), noise)
    if teacher:
        (folder / "t.pt").write_text("a teacher")
    kinds = {name: name if name in ("plain", "native", "yolokd") else "recipe" for name in arms}
    comparison = Comparison(
        folder=folder,
        student="n.pt",
        teacher=str(folder / "t.pt"),
        judged=str(folder / "t.pt") if teacher else "",
        split=EvalSplit(str(folder / "cats.yaml"), "test"),
        settings={"epochs": 3, "imgsz": 64, "batch": 4},
        arms=[Arm(name, kind, "yolokd" if kind == "recipe" else kind, {"lr0": 0.1}) for name, kind in kinds.items()],
        seeds=list(range(seeds)),
        trust=False,
        jobs=1,
        robustness=True,
        files={"t.pt": "0" * 64},
        machine={**MACHINE, **VERSIONS},
        command="yolokd compare teacher=t.pt",
        date="2026-11-21",
        **more,
    )
    comparison.save()
    return comparison


def finish(comparison: Comparison, arm: str, seed: int, hits: Sequence[int], **more: Any) -> None:
    """Write what a finished run leaves; ``more`` replaces parts of its result."""
    folder = comparison.run_folder(arm, seed)
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "weights" / "best.pt").write_text(f"{arm} {seed}")
    images = found(comparison.folder, hits)
    for name in detections(arm):
        save(folder / name, images, NAMES)
    scores = asdict(coco_scores(from_labels(images, NAMES)))
    content = {
        "scores": {"best": scores, "last": scores},
        **{"parameters": 100, "gflops": 1.5, "size": 1000, "images": IMAGES, "objects": IMAGES},
        **{"train_seconds": 60.0, "peak_memory": 10, "start_sha256": f"start {seed}"},
    }
    if arm == TEACHER:
        content |= {"parameters": 900, "gflops": 9.5, "size": 9000, "train_seconds": None}
    (folder / RESULT).write_text(json.dumps({**content, **more}))
    rows = [f"{epoch},{10 * epoch},1.5,{0.1 * epoch:.1f}" for epoch in (1, 2, 3)]
    (folder / "results.csv").write_text("\n".join([HEADER, *rows]))


def judged(folder: Path, hits: Mapping[str, Mapping[int, int]], **how: Any) -> Comparison:
    """A comparison whose runs have found the objects of the first so many images.

    Args:
        folder: of the comparison.
        hits: by arm and seed; arms without finished runs have an empty one; ``teacher`` is seed 0 of its own.
        how: for `begin`.
    """
    arms = [arm for arm in hits if arm != TEACHER]
    comparison = begin(folder, arms, **{"teacher": TEACHER in hits, **how})
    for arm, seeds in hits.items():
        for seed, count in seeds.items():
            finish(comparison, arm, seed, range(count))
    return comparison
