"""What each loss gained alone on our benchmark, for the table of ``yolokd losses``."""

from __future__ import annotations

# Filled from examples/benchmarks/results/losses.csv, whose README says how it was made.
MEASURED: dict[str, str] = {}

HOW: tuple[str, ...] = ()
