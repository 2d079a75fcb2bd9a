"""The results.csv of a run: a row an epoch."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from yolokd.errors import UserError
from yolokd.sidecar import complete_rows

RESULTS = "results.csv"
# A column of results.csv, row by row; None where the epoch was not validated.
Columns = Mapping[str, list[float | None]]


def read_results(file: Path) -> Columns:
    """Read results.csv: complete rows in the order of their epochs, the last one where an epoch stands twice.

    Ultralytics writes zeros for an epoch without validation (``val=False``); they become None.

    Raises:
        UserError: it is missing, or no epoch in it is complete.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", "Give a run folder, with its results.csv.") from None
    header, *rows = csv.reader(complete_rows(text, sys.maxsize).splitlines() or [""])
    names = [name.strip() for name in header]
    rows = [row for row in rows if len(row) == len(names)]
    if "epoch" not in names or not rows:
        raise UserError(f"{file} has no finished epoch.", "Train on (`yolokd train resume=PATH/last.pt`), then report.")
    table = [dict(zip(names, map(_float, row), strict=True)) for row in rows]
    judged = [name for name in names if name.startswith(("metrics/", "val/"))]
    for row in table:
        if not any(row[name] for name in judged):
            row.update(dict.fromkeys(judged))
    return {name: [row[name] for row in table] for name in names}


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None  # false for NaN as well
