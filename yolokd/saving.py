"""The checkpoints of a training with a teacher: written whole, plain, and read again with what is ours beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK

from yolokd.compat.checkpoint import read_checkpoint, restricted_loading
from yolokd.compat.files import atomic_replace, atomic_strip, staged
from yolokd.compat.training import plain_optimizer
from yolokd.config import DistillConfig
from yolokd.criterion import DistillationCriterion
from yolokd.sidecar import Sidecar, complete_rows, load_sidecar


class SavingTrainer(DetectionTrainer):  # type: ignore[misc]
    """The part of `DistillationTrainer` that saves and takes up again.

    ``last.pt``, ``best.pt`` and ``epochN.pt`` are a plain Ultralytics run; adapters, balance and guard lie beside them
    in ``distill.pt``.
    """

    config: DistillConfig
    sidecar: Sidecar
    losses: nn.ModuleDict
    criterion: DistillationCriterion | None
    _course: Mapping[str, Any]  # what distill.pt knows of balance and guard
    # Attributes of Ultralytics' trainer, which has no types.
    wdir: Path
    last: Path
    best: Path

    def save_model(self) -> bool:
        """Write ``distill.pt``, then the checkpoints, each by rename, ``last.pt`` the last of all."""
        if self.optimizer is not None:
            course = {} if self.criterion is None else self.criterion.state()
            self.sidecar = self.sidecar.with_epoch(self.epoch, self.losses, self.optimizer, course)
            self.sidecar.save(self.wdir)
        with plain_optimizer(self.optimizer), staged(self):
            return bool(super().save_model())

    def resume_training(self, ckpt: Any) -> None:
        """Ultralytics' own, with results.csv trimmed to the epochs that the checkpoint knows."""
        super().resume_training(ckpt)  # first: it may refuse
        if ckpt is not None and self.resume and RANK in {-1, 0} and self.csv.is_file():
            rows = complete_rows(self.csv.read_text(encoding="utf-8"), self.start_epoch)
            atomic_replace(self.csv, lambda partial: partial.write_text(rows, encoding="utf-8"))

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Ultralytics' own for the student, on resume and after a NaN; ours for the adapters."""
        with plain_optimizer(self.optimizer):
            super()._load_checkpoint_state(ckpt)
        if len(self.losses):
            self.sidecar = replace(load_sidecar(self.wdir), config=self.config.to_dict())
            self._course = self.sidecar.restore(ckpt["epoch"], self.losses, self.optimizer)
            LOGGER.info(f"Distillation restored from distill.pt, epoch {ckpt['epoch'] + 1}.")
            if self.criterion is not None and self._course:  # after a NaN; on resume it is not there yet
                self.criterion.load(self._course)

    def final_eval(self) -> None:
        """Ultralytics' own, with the checkpoints stripped by rename."""
        if self.resume and RANK in {-1, 0} and self.best.is_file():  # perhaps not written by this process
            read_checkpoint(self.best, role="best.pt", trust=self.config.trust)
        with atomic_strip(), restricted_loading(self.config.trust):
            super().final_eval()
