"""Values as they are written, and which teacher can be judged; whole plans are tested in test_compare.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics import YOLO

from tests.conftest import save_detector
from tests.evaluation.test_comparison import comparison  # noqa: F401
from tests.lively import save_tiny_detr
from yolokd.errors import UserError
from yolokd.evaluation.arms import Arm
from yolokd.evaluation.comparison import Comparison
from yolokd.evaluation.planning import _judged, plan, read_jobs, read_seeds, read_switch
from yolokd.evaluation.splits import EvalSplit


@pytest.mark.parametrize(("value", "seeds"), [(1, [0]), (5, [0, 1, 2, 3, 4]), ((3, 0), [3, 0]), ([7], [7])])
def test_seeds(value: Any, seeds: list[int]) -> None:
    assert read_seeds(value) == seeds


@pytest.mark.parametrize(
    ("value", "device", "jobs"),
    [(None, None, 1), (None, "cpu", 1), (None, "0,1", 2), (None, (0, 1, 2), 3), (4, "0,1", 4), (2, None, 2)],
)
def test_jobs(value: Any, device: Any, jobs: int) -> None:
    assert read_jobs(value, device) == jobs


@pytest.mark.parametrize(("value", "on"), [("on", True), (True, True), ("off", False), (False, False), ("none", False)])
def test_switch(value: Any, on: bool) -> None:
    assert read_switch("robustness", value) is on


@pytest.mark.parametrize("value", [2, "yes", None])
def test_no_switch(value: Any) -> None:
    with pytest.raises(UserError, match="is neither on nor off"):
        read_switch("robustness", "" if value is None else value)


def test_which_teacher_is_judged(
    comparison: Comparison,  # noqa: F811
    toy_data: Path,
    toy_teacher: Path,
    tmp_path: Path,
) -> None:
    detr = save_tiny_detr(tmp_path / "detr.pt")
    strange = save_detector("yolo11n.yaml", tmp_path / "strange.pt", {0: "cat"})
    partial = save_detector("yolo11n.yaml", tmp_path / "partial.pt", {0: "red", 1: "lime", 2: "blue"})
    YOLO("yolo11n-seg.yaml").save(segmenter := tmp_path / "seg.pt")
    here = replace(comparison, split=EvalSplit(str(toy_data), "val"))
    for teacher, judged in (
        (toy_teacher, str(toy_teacher)),
        (f"{toy_teacher}:red", str(toy_teacher)),
        (f"{toy_teacher},{strange}", ""),  # several have no AP of their own
        ("self", ""),
        ("", ""),
        (detr, ""),  # Ultralytics' detection validator does not decode it
        (strange, ""),  # no class of the data
        (partial, ""),  # what it does not know would count as its AP, 0
        (segmenter, ""),  # masks stand beside its boxes
    ):
        assert _judged(replace(here, teacher=str(teacher))) == judged, teacher
    named = replace(here, teacher=str(partial), arms=[Arm("yolokd", "yolokd", "yolokd", {"class_map": "lime:green"})])
    assert _judged(named) == str(partial)


@pytest.mark.parametrize(
    ("changes", "asked", "words"),
    [
        ({"names": ["a", "b", "a"]}, {}, "has two classes called a"),
        ({"channels": 1}, {}, "has images with 1 channels"),
        ({}, {"backend": "cocoapi"}, "backend=cocoapi is not known"),
    ],
)
def test_what_would_be_found_out_only_at_the_end(
    toy_data: Path, toy_student: Path, tmp_path: Path, changes: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(yaml.safe_load(toy_data.read_text()) | {"path": str(toy_data.parent)} | changes))
    given = {"student": str(toy_student), "data": str(data), "teacher": str(toy_student), "eval_split": "val", **asked}
    with pytest.raises(UserError, match=words):
        plan(given)
    if "channels" in changes:
        assert not plan({**given, "robustness": "off"})[0].robustness
