"""The probability from which a teacher's detections are taken for objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import NAMES
from tests.helpers import panel
from tests.oracle import SIDE, TURNED, Oracle
from yolokd.calibrating import FLOOR, described, judge, only, thresholds
from yolokd.classes import ClassMap
from yolokd.predictions import HeadInfo
from yolokd.pseudo import NEVER

STUDENT = HeadInfo(NAMES, (8, 16, 32), (64, 128, 256), 16, False)


def judged(*rows: tuple[float, int, bool]) -> Any:
    top, label, right = zip(*rows, strict=True)
    return torch.tensor(top), torch.tensor(label), torch.tensor(right)


def column(label: int, right: str, top: float = 0.99, step: float = 0.01) -> list[tuple[float, int, bool]]:
    return [(top - step * i, label, word == "+") for i, word in enumerate(right)]


@pytest.mark.parametrize(
    ("right", "precision", "expected"),
    [
        ("++++++++++", 0.9, 0.90),  # all that were seen
        ("+++++++++-", 0.9, 0.90),  # nine of ten
        ("++++++++--", 0.9, 0.92),  # ... only eight of ten
        ("-+++++++++", 0.9, 0.90),  # a first mistake is made good by nine
        ("----------", 0.9, NEVER),
        ("+-+-+-+-+-", 1.0, 0.99),
        ("+-+-+-+-+-", 0.5, 0.90),
    ],
)
def test_the_lowest_probability_that_keeps_the_precision(right: str, precision: float, expected: float) -> None:
    assert thresholds(judged(*column(0, right)), 1, precision).tolist() == [pytest.approx(expected)]


def test_no_class_goes_below_the_floor() -> None:
    found = thresholds(judged(*column(0, "+" * 20, top=0.5, step=0.02)), 1, 0.9)
    assert float(found) >= FLOOR


def test_of_equal_probabilities_all_or_none() -> None:
    rows = [(0.9, 0, True)] * 9 + [(0.8, 0, True), (0.8, 0, False), (0.8, 0, False)]
    assert thresholds(judged(*rows), 1, 0.9).tolist() == [pytest.approx(0.9)]


def test_a_class_that_is_hardly_seen_takes_the_threshold_of_all() -> None:
    rows = column(0, "+" * 15) + column(1, "-----", 0.5)
    assert thresholds(judged(*rows), 3, 0.9).tolist() == [pytest.approx(0.85), 0.5, 0.5]
    assert thresholds((torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).bool()), 2, 0.9).tolist() == [NEVER] * 2


def batch(rows: list[tuple[float, ...]], images: int = 2) -> dict[str, Any]:
    """Labels as (image, class, x1, y1, x2, y2) in pixels."""
    table = torch.tensor(rows)
    x1, y1, x2, y2 = (table[:, 2:] / SIDE).unbind(1)
    boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
    return {"img": torch.zeros(images, 3, SIDE, SIDE), "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": boxes}


def test_detections_are_judged_by_class_place_and_image() -> None:
    """One right; one of another class; one in another image; one beside the object; and a second one of the first."""
    seen = [
        (0, 1, 0.9, 8, 8, 40, 40),
        (0, 2, 0.8, 40, 40, 64, 64),
        (1, 0, 0.7, 0, 0, 24, 24),
        (1, 1, 0.6, 32, 32, 64, 64),
        (0, 1, 0.5, 20, 8, 52, 40),
    ]
    truth = [(0, 1, 8, 8, 40, 40), (0, 0, 40, 40, 64, 64), (0, 0, 0, 0, 24, 24), (1, 1, 0, 32, 24, 64)]
    oracle = Oracle(seen, TURNED)
    teachers = panel(oracle, STUDENT, ClassMap.by_name(TURNED, NAMES))
    top, label, right = judge(teachers, [batch(truth)], STUDENT)
    found = sorted(zip(top.tolist(), label.tolist(), right.tolist(), strict=True), reverse=True)
    assert [(round(p, 2), c, r) for p, c, r in found] == [
        (0.9, 1, True), (0.8, 2, False), (0.7, 0, False), (0.6, 1, False), (0.5, 1, False)
    ]  # fmt: skip


def test_only_some_classes() -> None:
    top, label, right = only(judged((0.9, 0, True), (0.8, 1, False), (0.7, 2, True)), [2, 0])
    assert (top.tolist(), label.tolist(), right.tolist()) == (
        [pytest.approx(0.9), pytest.approx(0.7)],
        [0, 2],
        [True] * 2,
    )


def test_nothing_to_judge_on() -> None:
    oracle = Oracle([], TURNED)
    top, label, right = judge(panel(oracle, STUDENT, ClassMap.by_name(TURNED, NAMES)), [], STUDENT)
    assert (len(top), label.dtype, right.dtype) == (0, torch.long, torch.bool)


def test_the_thresholds_in_words() -> None:
    text = described(torch.tensor([0.5, NEVER, 0.25]), NAMES, 0.9, "val")
    assert text.startswith("pseudo-boxes from a probability of red 0.50, green none, blue 0.25 (precision 0.9 on val")
    assert "soft targets only" in text
    assert "none" not in described(torch.tensor([0.5]), {0: "red"}, 0.9, "val")
    assert "(40 classes)" in described(torch.full((40,), 0.5), {i: str(i) for i in range(40)}, 0.9, "val")
