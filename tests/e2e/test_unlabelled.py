"""A two-class nano out of a COCO teacher, with no label at all, on real images with real weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ultralytics import YOLO

from yolokd import distill
from yolokd.criterion import DistillationCriterion

pytestmark = [pytest.mark.e2e, pytest.mark.shared]


def test_two_classes_of_a_coco_teacher(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zebra and the giraffes become classes 1 and 0, in the images that show them and in no other."""
    photos = tmp_path / "photos"
    shutil.copytree(shared / "data/coco8/images/train", photos)
    call, taught = DistillationCriterion.__call__, []

    def listening(self: DistillationCriterion, preds: Any, batch: Any) -> Any:
        said = call(self, preds, batch)
        for i, file in enumerate(batch["im_file"]):
            classes = self.taught["cls"][self.taught["batch_idx"] == i].ravel().tolist()
            taught.append((Path(file).stem, set(classes)))
        return said

    monkeypatch.setattr(DistillationCriterion, "__call__", listening)
    still = dict.fromkeys(("mosaic", "fliplr", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "erasing"), 0.0)
    run = distill(
        "yolo11n.yaml",
        shared / "weights/yolov8s.pt",
        unlabelled=photos,
        student_classes=["giraffe", "zebra"],
        val=False,
        epochs=1,
        imgsz=320,
        batch=4,
        device="cpu",
        workers=0,
        plots=False,
        project=str(tmp_path / "runs"),
        **still,
    )
    assert dict(taught) == {
        "000000000009": set(),  # food
        "000000000025": {0.0},  # two giraffes
        "000000000030": set(),  # a vase
        "000000000034": {1.0},  # a zebra
    }
    assert YOLO(run.best).names == {0: "giraffe", 1: "zebra"}
    assert not list(tmp_path.rglob("*.cache"))
