"""The process of a run: its cores, its exit code, and that it imports nothing heavy first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolokd.evaluation.one import confined, main

ROOT = Path(__file__).resolve().parents[2]


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_cores_are_known_before_a_library_counts_them() -> None:
    heavy = "{'torch', 'numpy', 'ultralytics'} & set(sys.modules)"
    assert run(f"import sys, yolokd.evaluation.one; print({heavy})") == "set()"


@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_threads_and_cores() -> None:
    core = sorted(os.sched_getaffinity(0))[0]
    code = (
        "import os\nfrom yolokd.evaluation.one import confined\n"
        f"with confined([{core}]):\n    import torch\n    from ultralytics.utils.torch_utils import select_device\n"
        "    select_device('cpu', verbose=False)\n"
        "    print(sorted(os.sched_getaffinity(0)), os.cpu_count(), torch.get_num_threads())"
    )
    # Of two cores, Ultralytics would leave one to the rest of the machine: here the rest has its own.
    assert run(code).splitlines()[-1] == f"[{core}] 2 1"


def test_without_cores_nothing_changes() -> None:
    before = os.cpu_count
    with confined([]):
        assert os.cpu_count is before


def test_a_mistake_is_two_lines_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "plain", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
