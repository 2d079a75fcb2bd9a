from __future__ import annotations

import doctest

import pytest

from yolokd.evaluation.report import words


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(words) == (0, 10)


@pytest.mark.parametrize("tell", [words.points, words.signed, words.percent, words.amount, words.millions, words.size])
def test_what_does_not_exist_is_a_dash(tell: object) -> None:
    assert tell(None) == "–"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(59.0, "59.0 s"), (119.9, "119.9 s"), (120.0, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h")],
)
def test_a_time_has_the_unit_that_fits(seconds: float, said: str) -> None:
    assert words.duration({"mean": seconds, "sd": None}).replace(words.HARD, " ") == said


def test_an_interval_just_clear_of_zero_is_seen_to_be() -> None:
    assert words.interval({"low": 0.0003, "high": 0.03}) == "+0.03 to +3.00"
    assert words.interval({"low": None, "high": None}) == ""


def test_a_minus_is_a_minus() -> None:
    assert words.signed(-0.012) == "−1.20"
    assert words.percent(-0.5).startswith("−")


def test_a_long_name_is_cut_and_unprintable_characters_are_dropped() -> None:
    assert words.shorten("a" * 30, 5) == "aaaa…"
    assert words.shorten("a\x00\nb") == "ab"


def test_settings_are_told_as_one_writes_them() -> None:
    assert words.setting([1, None, {"a": "b"}]) == "1, none, a:b"


def test_without_a_verdict_the_reason_is_said() -> None:
    assert words.verdict({"verdict": "", "seeds": 2}) == "no verdict: fewer than 3 seeds"
    assert words.verdict({"verdict": "", "seeds": 3}) == "no verdict: too few images"
    assert words.verdict({"verdict": "hurts", "seeds": 3}) == "hurts"
