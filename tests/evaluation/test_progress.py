from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.runs import finish
from tests.evaluation.test_comparison import comparison  # noqa: F401
from yolokd.evaluation.comparison import Comparison
from yolokd.evaluation.progress import duration, progress, seconds_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (5399, "90 min"), (5400, "1.5 h"), (90000, "25.0 h")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_rest_is_estimated_by_what_each_arm_took(comparison: Comparison, tmp_path: Path) -> None:  # noqa: F811
    assert seconds_left(comparison) == 0
    finish(comparison, "plain", 0, train_seconds=100.0)
    assert seconds_left(comparison) == 300  # nothing is known of the other arm yet
    finish(comparison, "mine", 0, train_seconds=700.0)
    assert seconds_left(comparison) == 800
    comparison.jobs = 2
    assert seconds_left(comparison) == 400


def test_one_line_a_run(comparison: Comparison) -> None:  # noqa: F811
    comparison.settings["batch"] = 4
    finish(comparison, "plain", 4, ap=0.3014, train_seconds=720.0)
    finish(comparison, "mine", 4, ap=None, train_seconds=10.0)
    finish(comparison, "teacher", 0, ap=0.0)
    assert progress(comparison, "plain", 4) == "seed 2 of 2, plain: AP .301 in 12 min (about 12 min left)"
    assert progress(comparison, "mine", 4) == "seed 2 of 2, mine: no object to find in 10 s (about 12 min left)"
    assert progress(comparison, "teacher", 0) == "teacher: AP .000"
    finish(comparison, "plain", 0, ap=1.0)
    assert "AP 1.000" in progress(comparison, "plain", 0)
