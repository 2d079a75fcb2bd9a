"""A CSV with a row a run, to which several processes write."""

import csv
from pathlib import Path
from typing import Any


def has(table: Path, key: dict[str, str]) -> bool:
    """Is the row of a run there?"""
    rows = csv.DictReader(table.open()) if table.exists() else []
    return any(all(row[name] == value for name, value in key.items()) for row in rows)


def append(table: Path, row: dict[str, Any]) -> None:
    """Add a row, to a new table after the names of its columns."""
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writerows([{name: name for name in row}] if new else [])
        writer.writerow(row)
