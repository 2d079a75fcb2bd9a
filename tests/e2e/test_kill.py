"""Real SIGKILLs, by the script that measures them; its full table stands beside it in results/kill_test.csv."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "benchmarks" / "kill_test.py"


@pytest.mark.e2e
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_two_killed_runs_end_whole(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "kills=2", f"out={tmp_path / 'table.csv'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 of 2 ended")
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["ok"] for row in table] == ["True", "True"]
    # The second was killed twice, so it took two resumes; neither had finished when it was killed.
    assert [row["resumes"] for row in table] == ["1", "2"]
    assert all(row["epochs_in_last"] != "end" for row in table)
