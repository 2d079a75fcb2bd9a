"""The sentence at the top of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolokd.evaluation.arms import PLAIN
from yolokd.evaluation.statistics import FEWEST_SEEDS, HELPS, HURTS, NO_VERDICT


def verdict(arm: str, to_plain: Mapping[str, Any] | None) -> dict[str, str]:
    """Say in one sentence whether an arm was worth it.

    Args:
        arm: its name.
        to_plain: its difference to plain, as in ``report.json``; None where no seed has both.

    Returns:
        ``arm``, ``word`` (``helps``, ``no measurable difference``, ``hurts``, or empty) and ``text``.
    """
    word = NO_VERDICT if to_plain is None else to_plain["verdict"]
    return {"arm": arm, "word": word, "text": _text(arm, to_plain)}


def _text(arm: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"No verdict: no seed of {arm} has a finished run of {PLAIN} beside it."
    gain = f"{_signed(found['mean'])} points of mAP50-95"
    seeds = f"{found['seeds']} seed{'' if found['seeds'] == 1 else 's'}"
    word = found["verdict"]
    if word == NO_VERDICT:
        few = f"{seeds}: too few" if found["seeds"] < FEWEST_SEEDS else "A single image: too little"
        return f"{few} for a verdict; {arm} against {PLAIN}: {gain}, which may be noise."
    interval = f"(95 % interval {_signed(found['low'])} to {_signed(found['high'])}, {seeds})"
    if word in (HELPS, HURTS):
        return f"{arm} {word}: {gain} {'over' if word == HELPS else 'against'} {PLAIN} {interval}."
    return f"{word[0].upper()}{word[1:]} between {arm} and {PLAIN}: {gain} {interval}."


def _signed(value: float) -> str:
    """A difference in points; with two digits an interval just clear of zero is seen to be.

    >>> _signed(-0.00049)
    '-0.05'
    """
    return f"{100 * value:+.2f}"
