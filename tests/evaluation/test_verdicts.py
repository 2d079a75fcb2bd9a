"""The sentence of the verdict, in all its cases."""

from __future__ import annotations

from typing import Any

import pytest

from yolokd.evaluation.verdicts import verdict

ENDS = {"low": 0.0062, "high": 0.0201}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            {"mean": 0.013, "verdict": "helps", "seeds": 5, **ENDS},
            "yolokd helps: +1.30 points of mAP50-95 over plain (95 % interval +0.62 to +2.01, 5 seeds).",
        ),
        (
            {"mean": -0.013, "verdict": "hurts", "seeds": 3, "low": -0.02, "high": -0.0001},
            "yolokd hurts: -1.30 points of mAP50-95 against plain (95 % interval -2.00 to -0.01, 3 seeds).",
        ),
        (
            {"mean": 0.001, "verdict": "no measurable difference", "seeds": 3, "low": -0.005, "high": 0.007},
            "No measurable difference between yolokd and plain: +0.10 points of mAP50-95 "
            "(95 % interval -0.50 to +0.70, 3 seeds).",
        ),
        (
            {"mean": 0.004, "verdict": "", "seeds": 2, "low": None, "high": None},
            "2 seeds: too few for a verdict; yolokd against plain: +0.40 points of mAP50-95, which may be noise.",
        ),
        (
            {"mean": -0.004, "verdict": "", "seeds": 1, "low": None, "high": None},
            "1 seed: too few for a verdict; yolokd against plain: -0.40 points of mAP50-95, which may be noise.",
        ),
        (
            {"mean": 0.5, "verdict": "", "seeds": 3, "low": None, "high": None},
            "A single image: too little for a verdict; yolokd against plain: +50.00 points of mAP50-95, which may be "
            "noise.",
        ),
        (None, "No verdict: no seed of yolokd has a finished run of plain beside it."),
    ],
)
def test_the_sentence(found: dict[str, Any] | None, text: str) -> None:
    assert verdict("yolokd", found) == {"arm": "yolokd", "word": found["verdict"] if found else "", "text": text}
