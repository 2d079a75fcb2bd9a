from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.results import image
from yolokd.evaluation.calibration import calibration

NAMES = {0: "cat"}
A, FAR = (0, 0, 100, 100), (300, 300, 400, 400)


def test_a_case_that_a_person_can_compute() -> None:
    images = [
        image("1.jpg", [(A, 0.95, 0), (FAR, 0.93, 0), (FAR, 0.15, 0)], [(A, 0)]),  # right, wrong, wrong
        image("2.jpg", [(A, 0.17, 0), (A, 0.16, 0), (A, 0.049, 0)], [(A, 0)]),  # right, a second box, left out
    ]
    result = calibration(images, NAMES)
    assert result["bins"] == [
        [pytest.approx(0.16), pytest.approx(1 / 3), 3],
        [pytest.approx(0.94), pytest.approx(1 / 2), 2],
    ]
    # (3 * |.16 - .333| + 2 * |.94 - .5|) / 5
    assert result["ece"] == pytest.approx((3 * (1 / 3 - 0.16) + 2 * 0.44) / 5)


def test_a_detector_that_knows_itself() -> None:
    """Right as often as it is sure: the error goes to 0; twice as sure as it may be: to the difference."""
    rng = np.random.default_rng(0)
    honest, boasting = [], []
    for i in range(1500):
        score = float(rng.uniform(0.05, 1))
        box = A if rng.random() < score else FAR
        honest.append(image(f"{i}.jpg", [(box, score, 0)], [(A, 0)]))
        box = A if rng.random() < score / 2 else FAR
        boasting.append(image(f"{i}.jpg", [(box, score, 0)], [(A, 0)]))
    assert calibration(honest, NAMES)["ece"] < 0.04
    assert calibration(boasting, NAMES)["ece"] == pytest.approx(0.5 * 0.525, abs=0.04)
    assert sum(count for *_, count in calibration(honest, NAMES)["bins"]) == 1500


def test_edges_of_the_bins() -> None:
    scores = [0.05, 0.0999, 0.1, 0.9, 1.0]
    images = [image(f"{i}.jpg", [(A, score, 0)], [(A, 0)]) for i, score in enumerate(scores)]
    result = calibration(images, NAMES)
    assert [count for *_, count in result["bins"]] == [2, 1, 2]
    assert all(precision == 1 for _, precision, _ in result["bins"])


def test_nothing_found() -> None:
    assert calibration([image(truth=[(A, 0)]), image(found=[(A, 0.04, 0)])], NAMES) == {"ece": None, "bins": []}
    assert calibration([], NAMES) == {"ece": None, "bins": []}
