"""The table that `yolokd losses` prints is the one that was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from yolokd.losses.base import LOSSES
from yolokd.losses.measured import MEASURED, SHARE, in_words

RESULTS = Path(__file__).parents[2] / "examples" / "benchmarks" / "results"


def rows(name: str) -> dict[tuple[str, str], float]:
    with (RESULTS / name).open(encoding="utf-8") as file:
        return {(row["arm"], row["seed"]): 100 * float(row["both_map"]) for row in csv.DictReader(file)}


def test_each_gain_is_the_difference_of_two_rows_of_one_seed() -> None:
    plain, alone = rows("aquarium.csv"), rows("losses.csv")
    for name in LOSSES:
        seeds = sorted(seed for arm, seed in alone if arm == f"{name}@{SHARE}")
        found = [alone[f"{name}@{SHARE}", seed] - plain["plain", seed] for seed in seeds]
        assert MEASURED.get(name, ()) == pytest.approx(found, abs=0.051), name  # written with one decimal
    assert set(MEASURED) <= set(LOSSES)


def test_in_words() -> None:
    assert in_words(()) == "not measured"
    assert in_words((1.3,)) == "+1.3 (one seed)"
    assert in_words((1.3, -0.2)) == "+0.6 (2 seeds: +1.3, -0.2)"
