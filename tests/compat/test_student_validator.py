"""A student with classes of its own; what it makes of labels and images: tests/test_cut_off.py."""

from __future__ import annotations

from pathlib import Path

from ultralytics import YOLO

from tests.conftest import NAMES
from yolokd.compat.student_validator import StudentValidator


def test_a_student_of_some_classes_is_not_numbered_as_cocos(toy_student: Path, tmp_path: Path) -> None:
    """Ultralytics knows COCO by the path of its validation list, and would write category ids for 80 classes."""
    from ultralytics.cfg import get_cfg

    args = get_cfg(overrides={"task": "detect", "mode": "val", "val": True})
    for own, coco in (({0: "a"}, False), (dict(NAMES), True)):
        validator = StudentValidator(args=args, save_dir=tmp_path)
        validator.data, validator.own_names, validator.training = {"val": "/x/coco/val2017.txt"}, own, True
        validator.init_metrics(YOLO(toy_student).model)
        assert validator.is_coco is coco
