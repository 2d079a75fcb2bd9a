"""What the runs of an arm did over their epochs, from their results.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from yolokd.errors import UserError
from yolokd.evaluation.results import RESULTS, Columns, read_results

AP = "metrics/mAP50-95(B)"
# The distillation terms and their gradient shares: the name of a term stands between.
_LOSS, _SHARE = ("train/kd_", "_loss"), ("balance/", "_share")
_NATIVE = "train/dis_loss"  # Ultralytics' own distillation; its term is called dis, and holds its gain


def read_courses(folders: Sequence[Path]) -> list[Columns]:
    """Read the results.csv of runs; one that is missing, or without a whole row, is left out.

    Args:
        folders: the run folders.
    """
    found = []
    for folder in folders:
        try:
            found.append(read_results(folder / RESULTS))
        except UserError:  # the run is judged all the same: its checkpoints are what counts
            continue
    return found


def curve(runs: Sequence[Columns]) -> dict[str, Any] | None:
    """mAP50-95 on the validation split (Ultralytics' number) over the epochs.

    Args:
        runs: the seeds of an arm.

    Returns:
        ``epoch``, and for each the ``mean`` and the band ``low`` to ``high`` (the worst and the best seed). Where runs
        end after different epochs, those count that still ran. Epochs that no run validated are left out; None where
        there is no other.
    """
    epochs = _by_epoch(runs, AP)
    if not epochs:
        return None
    seeds = list(epochs.values())
    band = {"low": list(map(min, seeds)), "high": list(map(max, seeds))}
    return {"epoch": list(epochs), "mean": list(map(mean, seeds)), **band}


def terms(runs: Sequence[Columns]) -> dict[str, Any] | None:
    """The distillation terms with their gains, and the shares of their gradients, over the epochs.

    Args:
        runs: the seeds of an arm.

    Returns:
        ``epoch``; ``loss`` and ``share``: by the name of the term the mean over the seeds for each epoch, None where no
        seed has it. None where no run has a term.
    """
    columns = dict.fromkeys(name for run in runs for name in run)
    losses = {_between(name, *_LOSS): name for name in columns if _is(name, *_LOSS)}
    losses |= {"dis": _NATIVE} if _NATIVE in columns else {}
    shares = {_between(name, *_SHARE): name for name in columns if _is(name, *_SHARE)}
    if not losses:
        return None
    epochs = sorted({int(epoch or 0) for run in runs for epoch in run["epoch"]})

    def course(column: str) -> list[float | None]:
        known = _by_epoch(runs, column)
        return [mean(known[epoch]) if epoch in known else None for epoch in epochs]

    return {
        "epoch": epochs,
        "loss": {term: course(column) for term, column in losses.items()},
        "share": {term: course(column) for term, column in shares.items()},
    }


def _is(name: str, start: str, end: str) -> bool:
    return name.startswith(start) and name.endswith(end)


def _between(name: str, start: str, end: str) -> str:
    return name[len(start) : -len(end)]


def _by_epoch(runs: Sequence[Columns], column: str) -> dict[int, list[float]]:
    """Return what the runs have in a column at each epoch, in the order of the epochs."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in zip(run["epoch"], run.get(column, []), strict=False):
            if value is not None:
                found.setdefault(int(epoch or 0), []).append(value)
    return dict(sorted(found.items()))
