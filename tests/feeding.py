"""Trainings on the toy data, begun and not run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from yolokd.trainer import DistillationTrainer

FAST: dict[str, Any] = {"epochs": 1, "imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "workers": 0, "nbs": 4}


def settings(
    toy_data: Path | None, student: Path | str, teacher: Path | str, project: Path, **keys: Any
) -> dict[str, Any]:
    data = {"data": str(toy_data)} if toy_data else {}
    return {
        **FAST,
        **data,
        "model": str(student),
        "teacher": str(teacher),
        "project": str(project),
        "mode": "train",
        **keys,
    }


def trainer_of(*args: Any, **keys: Any) -> DistillationTrainer:
    trainer = DistillationTrainer(overrides=settings(*args, **keys))
    trainer._setup_train()
    return trainer


def columns(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open() as file:
        return {k.strip(): v for k, v in list(csv.DictReader(file))[-1].items()}
