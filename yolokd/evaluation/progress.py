"""What a comparison says while it runs."""

from __future__ import annotations

from statistics import fmean

from yolokd.evaluation.comparison import TEACHER, Comparison


def title(comparison: Comparison, arm: str, seed: int) -> str:
    """Which run this is: ``seed 1 of 5, yolokd``.

    Args:
        comparison: that it belongs to.
        arm: of the run.
        seed: of the run.
    """
    if arm == TEACHER:
        return "teacher"
    return f"seed {comparison.seeds.index(seed) + 1} of {len(comparison.seeds)}, {arm}"


def progress(comparison: Comparison, arm: str, seed: int) -> str:
    """One line about a run that has just finished: ``seed 1 of 5, yolokd: AP .301 in 12 min (about 50 min left)``.

    Args:
        comparison: with the results so far.
        arm: of the run.
        seed: of the run.
    """
    result = comparison.result(arm, seed)
    assert result is not None
    ap = result["scores"]["best"]["ap"]
    found = "no object to find" if ap is None else f"AP {ap:.3f}".replace("0.", ".", 1)
    if arm == TEACHER:
        return f"teacher: {found}"
    left, asked = seconds_left(comparison), comparison.keys(comparison.arm(arm), seed)["batch"]
    # Ultralytics halves the batch by itself; then this run is no longer like the others.
    short = "" if result["batch"] == asked else f", WARNING: memory was short, batch={result['batch']}"
    rest = f" (about {duration(left)} left)" if left else ""
    return f"{title(comparison, arm, seed)}: {found} in {duration(result['train_seconds'])}{rest}{short}"


def seconds_left(comparison: Comparison) -> float:
    """How long the rest will take, by the finished runs of the same arm, or of any arm where there are none yet.

    Args:
        comparison: with the results so far.
    """
    took: dict[str, list[float]] = {}
    for arm, seed in comparison.runs():
        if result := comparison.result(arm, seed):
            took.setdefault(arm, []).append(result["train_seconds"])
    everything = [seconds for times in took.values() for seconds in times]
    if not everything:
        return 0.0
    return sum(fmean(took.get(arm, everything)) for arm, _ in comparison.runs_left()) / comparison.jobs


def counted(number: int, word: str) -> str:
    """A number of things in words.

    >>> counted(1, "run"), counted(6, "run")
    ('1 run', '6 runs')
    """
    return f"{number} {word}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(40), duration(725), duration(10000)
    ('40 s', '12 min', '2.8 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
