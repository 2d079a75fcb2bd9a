"""One training: begun from its settings, or taken up where it was cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.compat.checkpoint import read_checkpoint
from yolokd.resume import locate, resume_arguments
from yolokd.trainer import DistillationTrainer


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        save_dir: the run folder.
        metrics: of ``best.pt`` on the validation split, as Ultralytics names them (``metrics/mAP50-95(B)``, ...).
        peers: the runs of models that trained together (``peers=``), whose folders lie in ``save_dir``; ``metrics``,
            ``best`` and ``last`` are then those of the best of them.
    """

    save_dir: Path
    metrics: Mapping[str, float]
    peers: tuple[Run, ...] = ()

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch; a plain Ultralytics checkpoint."""
        return self._weights / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self._weights / "last.pt"

    @property
    def _weights(self) -> Path:
        return best_peer(self.peers)._weights if self.peers else self.save_dir / "weights"


def best_peer(peers: Sequence[Run]) -> Run:
    """The one with the highest fitness on the validation split, the first of those that are equal."""
    return max(peers, key=lambda run: run.metrics.get("fitness", 0.0))


def train(given: Mapping[str, Any]) -> Run:
    """Train once, until the end.

    Args:
        given: yolokd's and Ultralytics' keys, mixed; ``resume`` (a ``last.pt`` or a run folder) needs no other.

    Raises:
        UserError: something in the settings, the files or the data.
    """
    given = dict(given)
    trust = bool(given.get("trust"))
    if resume := given.pop("resume", None):
        last = locate(resume)
        goes_on = resume_arguments(last, trust)
        if goes_on is None:
            return finished_run(last.parent.parent, trust)
        if "resume" not in goes_on:  # it begins again, with its own settings
            given.pop("exist_ok", None)
        given = {**goes_on, **given} if "resume" not in goes_on else {**given, **goes_on}
    trainer = DistillationTrainer(overrides={**given, "mode": "train"})
    trainer.train()
    return finished_run(trainer.save_dir, trust)


def finished_run(folder: Path, trust: bool = False) -> Run:
    """What a run folder holds after the training.

    Args:
        folder: the run folder.
        trust: load checkpoints that reference unknown globals.
    """
    run = Run(Path(folder), {})
    for file in (run.best, run.last):
        if file.is_file():
            metrics = read_checkpoint(file, trust=trust).get("train_metrics") or {}
            return Run(run.save_dir, {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))})
    return run
