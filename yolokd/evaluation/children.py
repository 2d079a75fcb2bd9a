"""Runs as processes of their own, several at once, none of which outlives the one that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yolokd

ATTACHED = "attached"  # a child with this word ends as soon as its standard input is closed
_WAIT = 0.2  # seconds between two looks at the children
_PATIENCE = 10.0  # seconds for a child to end by itself, before it is killed from here


@dataclass(frozen=True)
class Slot:
    """A part of the machine that one run at a time has to itself.

    Attributes:
        device: as Ultralytics says it; empty: as the comparison's settings say.
        cores: of the CPU; empty: all of them, and as many threads as Ultralytics likes.
    """

    device: str = ""
    cores: tuple[int, ...] = ()

    @property
    def words(self) -> list[str]:
        """What a child is told of it."""
        device = [f"device={self.device}"] if self.device else []
        return device + ([f"cores={','.join(map(str, self.cores))}"] if self.cores else [])


def devices_of(device: Any) -> list[str]:
    """``device=`` as a list, empty where nothing is said.

    >>> devices_of("0,1")
    ['0', '1']
    """
    words = device if isinstance(device, (list, tuple)) else str("" if device is None else device).split(",")
    return [str(word).strip() for word in words if str(word).strip()]


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def slots(jobs: int, device: Any, cores: Sequence[int]) -> list[Slot]:
    """Divide the machine.

    Args:
        jobs: how many runs at once.
        device: ``device=``; of several each run has one.
        cores: of the CPU. Each run has its own; where there are fewer cores than runs, some share one.

    Returns:
        as many as there are jobs.
    """
    devices = devices_of(device)
    if jobs == 1:
        return [Slot(device=",".join(devices))]
    groups = [tuple(cores[i::jobs]) or (cores[i % len(cores)],) for i in range(jobs)]
    return [Slot(devices[i % len(devices)] if devices else "", group) for i, group in enumerate(groups)]


class Child:
    """One run in a process and a session of its own.

    The session keeps a Ctrl-C from it, which is for us to hear. It holds the reading end of a pipe: when this process
    ends, however it ends, the pipe is closed, and the child kills its own process group.

    Args:
        words: what follows ``python -m yolokd.evaluation.one``.
        slot: its part of the machine.
        log: what it prints is added here.
    """

    def __init__(self, words: Sequence[str], slot: Slot, log: Path) -> None:
        self.slot, self.log = slot, log
        environment = dict(os.environ)
        place = str(Path(yolokd.__file__).resolve().parents[1])  # also where yolokd is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [place, environment.get("PYTHONPATH", "")]))
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}  # not another yolokd of the current folder
        if slot.cores:
            environment["OMP_NUM_THREADS"] = str(len(slot.cores))
        command = [sys.executable, "-m", "yolokd.evaluation.one", *words, *slot.words, ATTACHED]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_all(
    wanted: Sequence[tuple[str, int]],
    places: Sequence[Slot],
    start: Callable[[tuple[str, int], Slot], Child],
    ended: Callable[[tuple[str, int], int], None],
) -> None:
    """Run everything, as many at once as there are slots, in the given order.

    Args:
        wanted: runs as (arm, seed).
        places: the parts of the machine.
        start: starts a run in a slot.
        ended: told of each run's exit code, in the order in which they end.
    """
    waiting, free, running = list(wanted), list(places), dict[tuple[str, int], Child]()
    try:
        while waiting or running:
            while waiting and free:
                run = waiting.pop(0)
                running[run] = start(run, free.pop(0))
            for run, child in list(running.items()):
                if (code := child.process.poll()) is not None:
                    free.append(running.pop(run).slot)
                    child.stop()
                    ended(run, code)
            if running and not (waiting and free):
                time.sleep(_WAIT)
    finally:
        for child in running.values():
            child.stop()


def last_words(log: Path, lines: int = 2) -> list[str]:
    """The last lines of a log that say something, each cut to what fits on a line.

    Of a traceback that is the error: the lines of code are indented.
    """
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith((" ", "Traceback"))]
    return [line[:200] for line in said[-lines:]]
