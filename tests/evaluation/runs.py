"""Comparisons whose runs are made up: nothing is trained, everything is where a comparison has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from yolokd.evaluation import compare as module
from yolokd.evaluation import planning
from yolokd.evaluation.comparison import RESULT, TEACHER, Comparison, detections


class Killed(BaseException):
    """Stands for a SIGKILL: no `except Exception` sees it."""


def finish(comparison: Comparison, arm: str, seed: int, ap: float | None = 0.25, **more: Any) -> None:
    """Write what a finished run leaves."""
    folder = comparison.run_folder(arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in detections(arm):
        (folder / name).touch()
    content = {"scores": {"best": {"ap": ap}}, "train_seconds": 60.0, "batch": 4, **more}
    (folder / RESULT).write_text(json.dumps(content))


class Machine:
    """Runs without running; fails, or dies, where it is told to."""

    def __init__(self) -> None:
        self.started: list[str] = []  # arm/seed, or teacher
        self.words: list[list[str]] = []
        self.fails: set[str] = set()
        self.dies: dict[str, BaseException] = {}
        self.stopped = 0
        self.analysed: list[dict[str, Any]] = []

    def child(self, words: Sequence[str], slot: Any, log: Path) -> Any:
        folder, arm, seed = words
        name = arm if arm == TEACHER else f"{arm}/{seed}"
        self.started.append(name)
        self.words.append([*words, *slot.words])
        if name in self.dies:
            raise self.dies.pop(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("noise\nValueError: it fell over\n")
        if name not in self.fails:
            finish(Comparison.load(Path(folder)), arm, int(seed))
        process = SimpleNamespace(poll=lambda: 1 if name in self.fails else 0)

        def stop() -> None:
            self.stopped += 1

        return SimpleNamespace(process=process, slot=slot, log=log, stop=stop)

    def analyse(self, folder: Path, *, robustness: bool) -> dict[str, Any]:
        self.analysed.append({"folder": folder, "robustness": robustness})
        gain = {"mean": 0.012, "low": 0.004, "high": 0.02, "verdict": "helps"}
        arms = [
            {"name": "plain", "seeds_done": [0, 1], "ap": {"mean": 0.25}, "to_plain": None},
            {"name": "yolokd", "seeds_done": [0, 1], "ap": {"mean": 0.262}, "to_plain": gain},
        ]
        return {"verdict": {"text": "It helps."}, "teacher": {"name": "t.pt", "ap": 0.4}, "arms": arms}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, here: Path) -> Machine:
    """Comparisons of files that are called models, in an empty folder."""
    made = Machine()
    for name in ("t", "n"):
        (here / f"{name}.pt").write_text(name)
    monkeypatch.setattr(module, "Child", made.child)
    monkeypatch.setattr(planning, "look_at", lambda *args: [])
    monkeypatch.setattr(planning, "_judged", lambda comparison: comparison.teacher)
    analysis = ModuleType("yolokd.evaluation.analysis")
    analysis.analyse = made.analyse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yolokd.evaluation.analysis", analysis)
    return made
