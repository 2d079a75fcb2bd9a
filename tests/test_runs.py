"""What a run folder says of a finished training; trainings themselves are tested in test_trainer.py and tests/e2e."""

from __future__ import annotations

from pathlib import Path

import torch

from yolokd.runs import Run, best_peer, finished_run


def save(file: Path, **metrics: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"train_metrics": metrics or None}, file)


def test_the_metrics_are_those_of_best_pt(tmp_path: Path) -> None:
    save(tmp_path / "weights/last.pt", fitness=0.1)
    assert finished_run(tmp_path).metrics == {"fitness": 0.1}  # Ultralytics writes no best.pt without validation
    save(tmp_path / "weights/best.pt", fitness=0.3, note="words")
    run = finished_run(tmp_path)
    assert run.metrics == {"fitness": 0.3}
    assert (run.best, run.last) == (tmp_path / "weights/best.pt", tmp_path / "weights/last.pt")


def test_a_folder_without_checkpoints_or_metrics(tmp_path: Path) -> None:
    assert finished_run(tmp_path).metrics == {}
    save(tmp_path / "weights/best.pt")
    assert finished_run(tmp_path).metrics == {}


def test_of_peers_the_best_is_the_run(tmp_path: Path) -> None:
    peers = tuple(Run(tmp_path / name, {"fitness": f}) for name, f in (("a", 0.2), ("b", 0.3), ("c", 0.3)))
    assert best_peer(peers).save_dir.name == "b"  # the first of those that are equal
    assert Run(tmp_path, {}, peers).best == tmp_path / "b/weights/best.pt"
    assert best_peer((Run(tmp_path / "x", {}), *peers)).save_dir.name == "b"
