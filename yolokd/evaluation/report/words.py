"""Numbers as people read them: AP in points, shares in percent, times and sizes in units that fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"  # what does not exist; the page says beside it why
LEAST_SEEDS = 3  # for a verdict, and for an interval that covers the seeds as well
HARD = "\u00a0"  # a space at which no line breaks


def points(value: float | None, digits: int = 1) -> str:
    """AP in points.

    >>> points(0.3014)
    '30.1'
    """
    return NONE if value is None else f"{100 * value:.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference of AP in points; two digits, so that an interval just clear of zero is seen to be.

    >>> signed(-0.0041)
    '−0.41'
    """
    return NONE if value is None else f"{100 * value:+.2f}".replace("-", "−")


def spread(score: Mapping[str, Any] | None) -> str:
    """AP in points with its standard deviation over seeds.

    >>> spread({"mean": 0.3014, "sd": 0.004})
    '30.1\xa0±\xa00.4'
    """
    if not score or score["mean"] is None:
        return NONE
    return points(score["mean"]) + ("" if score["sd"] is None else f"{HARD}±{HARD}{points(score['sd'])}")


def interval(difference: Mapping[str, Any]) -> str:
    """The ends of an interval in points; empty where there is none."""
    low, high = difference["low"], difference["high"]
    return "" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def percent(value: float | None) -> str:
    """A share.

    >>> percent(0.813)
    '81.3\xa0%'
    """
    return NONE if value is None else f"{100 * value:.1f}{HARD}%".replace("-", "−")


def amount(value: float | None, digits: int = 1) -> str:
    """A plain number."""
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", "−")


def millions(value: float | None) -> str:
    """Parameters.

    >>> millions(2_591_205)
    '2.59\xa0M'
    """
    return NONE if value is None else f"{value / 1e6:.2f}{HARD}M"


def size(value: float | None) -> str:
    """Bytes, in powers of 1000 as disks are sold.

    >>> size(5_491_123)
    '5.5\xa0MB'
    """
    if value is None:
        return NONE
    unit, factor = ("GB", 1e9) if value >= 1e9 else ("MB", 1e6)
    return f"{value / factor:.1f}{HARD}{unit}"


def duration(time: Mapping[str, Any] | None) -> str:
    """Seconds with their standard deviation, in seconds, minutes or hours.

    >>> duration({"mean": 820.4, "sd": 30.0})
    '13.7\xa0±\xa00.5\xa0min'
    """
    if not time or time["mean"] is None:
        return NONE
    unit, factor = next((u for u in (("s", 1), ("min", 60)) if time["mean"] < 120 * u[1]), ("h", 3600))
    deviation = "" if time["sd"] is None else f"{HARD}±{HARD}{time['sd'] / factor:.1f}"
    return f"{time['mean'] / factor:.1f}{deviation}{HARD}{unit}"


def verdict(difference: Mapping[str, Any]) -> str:
    """The word about a difference, or why there is none."""
    few = "fewer than 3 seeds" if difference["seeds"] < LEAST_SEEDS else "too few images"
    return str(difference["verdict"]) or f"no verdict: {few}"


def plural(count: int, word: str) -> str:
    """A count with its noun.

    >>> plural(1, "seed"), plural(3, "seed")
    ('1\xa0seed', '3\xa0seeds')
    """
    return f"{count}{HARD}{word}{'' if count == 1 else 's'}"


def sentence(text: str) -> str:
    """A remark with its full stop.

    >>> sentence("nothing was held out")
    'nothing was held out.'
    """
    return text if text.endswith((".", "!", "?")) else f"{text}."


def setting(value: Any) -> str:
    """A value of a setting as one writes it.

    >>> setting({"cls": 3, "box": 5.0}), setting(None)
    ('cls:3, box:5.0', 'none')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key}:{setting(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    return "none" if value is None else str(value)


def shorten(text: Any, most: int = 18) -> str:
    """A name for a figure, which has no room for a long one; the tables beside it have it whole."""
    text = "".join(c for c in str(text) if c.isprintable())
    return text if len(text) <= most else f"{text[: most - 1]}…"
