"""How much of a distillation gain counts at which moment of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A factor in [0, 1] on every distillation gain.

    It rises linearly over the warm-up, so that a fresh adapter and a cold optimizer do not pull the student about;
    then it stays at 1 (``constant``) or falls to 0 along half a cosine (``cosine``). In the last ``close`` epochs it
    is 0 and the teacher does not run.

    Args:
        kind: ``constant`` or ``cosine``.
        epochs: length of the training, in epochs.
        warmup: length of the ramp, in epochs; cut so that an epoch is left, as Ultralytics cuts its own warm-up.
        close: epochs at the end without distillation.
        start: epochs at the beginning without distillation; the ramp follows them.
    """

    kind: str
    epochs: float
    warmup: float
    close: int = 0
    start: int = 0

    @property
    def ramp(self) -> float:
        """Length of the ramp, in epochs."""
        return max(min(self.warmup, self.epochs - self.start - 1), 0)

    @property
    def begun(self) -> float:
        """The moment from which the factor is full, in epochs."""
        return self.start + self.ramp

    def __call__(self, epoch: float) -> float:
        """The factor at a moment of training.

        Args:
            epoch: epochs done, with fraction: 1.5 is the middle of the second epoch.
        """
        end = self.epochs - self.close
        if epoch >= end or epoch < self.start:
            return 0.0
        if epoch < self.begun:
            return (epoch - self.start) / self.ramp
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch - self.begun) / max(end - self.begun, 1e-9)))
        return 1.0
