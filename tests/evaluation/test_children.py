"""Processes: how the machine is divided, in which order they run, and that none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yolokd.evaluation import children
from yolokd.evaluation.children import Slot, devices_of, last_words, run_all, slots


@pytest.mark.parametrize(
    ("device", "found"),
    [(None, []), ("", []), ("cpu", ["cpu"]), (0, ["0"]), ("0,1", ["0", "1"]), ((0, 1), ["0", "1"]), ([2], ["2"])],
)
def test_devices(device: Any, found: list[str]) -> None:
    assert devices_of(device) == found


@pytest.mark.parametrize(
    ("jobs", "device", "cores", "wanted"),
    [
        (1, "cpu", [0, 1], [Slot("cpu")]),  # nothing is divided
        (1, None, [0, 1], [Slot()]),
        (2, "cpu", [0, 1, 2, 5], [Slot("cpu", (0, 2)), Slot("cpu", (1, 5))]),
        (3, None, [4, 7], [Slot("", (4,)), Slot("", (7,)), Slot("", (4,))]),
        (2, (0, 1), [0, 1], [Slot("0", (0,)), Slot("1", (1,))]),
        (3, "0,1", [0, 1, 2], [Slot("0", (0,)), Slot("1", (1,)), Slot("0", (2,))]),
    ],
)
def test_the_machine_is_divided(jobs: int, device: Any, cores: list[int], wanted: list[Slot]) -> None:
    assert slots(jobs, device, cores) == wanted


def test_a_slot_in_words() -> None:
    assert Slot("1", (2, 5)).words == ["device=1", "cores=2,5"]
    assert Slot().words == []


class Pool:
    """Children that end after so many looks at them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: dict[tuple[str, int], int]) -> None:
        self.looks, self.events, self.most, self.alive = looks, list[str](), 0, 0
        monkeypatch.setattr(children, "_WAIT", 0)

    def start(self, run: tuple[str, int], slot: Slot) -> Any:
        self.events.append(f"start {run[0]}{run[1]} on {slot.device}")
        self.alive += 1
        self.most = max(self.most, self.alive)

        def poll() -> int | None:
            self.looks[run] -= 1
            return 0 if self.looks[run] <= 0 else None

        def stop() -> None:
            self.alive -= 1

        return SimpleNamespace(process=SimpleNamespace(poll=poll), slot=slot, stop=stop)

    def ended(self, run: tuple[str, int], code: int) -> None:
        self.events.append(f"end {run[0]}{run[1]}")


def test_runs_begin_in_order_each_in_a_free_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, {("a", 0): 5, ("b", 0): 1, ("a", 1): 1, ("b", 1): 1})
    run_all(list(pool.looks), [Slot("0"), Slot("1")], pool.start, pool.ended)
    assert pool.events == [
        *("start a0 on 0", "start b0 on 1", "end b0", "start a1 on 1", "end a1", "start b1 on 1", "end b1", "end a0"),
    ]
    assert (pool.most, pool.alive) == (2, 0)


def test_whatever_happens_no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, {("a", 0): 99, ("b", 0): 2})

    def interrupted(run: tuple[str, int], code: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(list(pool.looks), [Slot("0"), Slot("1")], pool.start, interrupted)
    assert pool.alive == 0


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == []
    log.write_text("x" * 30_000 + "\nfirst\n\n  0%|\r 50%|\r100%|\nValueError: no\n\n")
    assert last_words(log) == ["100%|", "ValueError: no"]
    log.write_text('noise\nTraceback (most recent call last):\n  File "x.py", line 1\n    raise X(\nX: no\n')
    assert last_words(log) == ["noise", "X: no"]
    log.write_text("y" * 500)
    assert last_words(log) == ["y" * 200]


SLEEPER = """
import os, subprocess, sys, threading, time
from yolokd.evaluation.one import _end_with_parent
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
threading.Thread(target=_end_with_parent, daemon=True).start()
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_child_and_its_own_children_end_when_the_pipe_is_closed() -> None:
    root = str(Path(children.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(10) == -9
    for _ in range(100):
        if not alive(grandchild):
            break
        time.sleep(0.05)
    assert not alive(grandchild)
    process.stdout.close()


def alive(pid: int) -> bool:
    """Is it running? One that has ended stays a zombie where nobody waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
