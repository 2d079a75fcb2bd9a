"""Against over-distillation: a student that goes on imitating and no longer gets better is left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import distributed

FADE = 5  # epochs over which distillation is faded out
FALL = 0.01  # what the distillation loss must have fallen by since the best epoch, of its value there


class Guard:
    """Fade distillation out where it still takes effect and no longer helps.

    It trips when the validation fitness has not risen above its best for ``patience`` epochs while the
    distillation loss stands at least ``FALL`` below its value in the best epoch: the student still comes closer to the
    teacher, but not to the task. How far it fell is the geometric mean over losses of their ratio, so that no loss
    counts more for being large. The gain then falls to 0 over ``FADE`` epochs and stays there.

    Source: Cho and Hariharan, "On the Efficacy of Knowledge Distillation", ICCV 2019,
    https://arxiv.org/abs/1910.01348, find that a small student can be hurt by distillation late in training and stop
    it early. Departures: the moment is decided by the run's own validation instead of being set beforehand, and the
    end is a fade.

    Args:
        patience: epochs without a rise; None turns the guard off.

    Raises:
        ValueError: the patience is below 1.
    """

    def __init__(self, patience: int | None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"guard_patience is {patience}; it must be at least 1")
        self.patience = patience
        self._best = 0.0  # a fitness of 0 is no best: at first a student finds nothing
        self._best_epoch: int | None = None
        self._at_best: dict[str, float] = {}
        self._fading_from: int | None = None

    def end_epoch(self, epoch: int, fitness: float | None, losses: Mapping[str, float]) -> str | None:
        """Look at an epoch that has ended.

        Args:
            epoch: its index, from 0.
            fitness: the student's on the validation images; None or not finite where there was no validation, which
                never trips the guard.
            losses: the epoch's mean of each distillation loss, without gain and factor; what is not finite and
                positive is left out.

        Returns:
            what to tell the user if this epoch tripped it, which happens once; else None.
        """
        if self.patience is None or self._fading_from is not None or fitness is None or not math.isfinite(fitness):
            return None
        usable = {name: float(value) for name, value in losses.items() if 0 < value < math.inf}
        if not usable:  # the teacher was not asked once: nothing that a later epoch could be compared with
            return None
        if fitness > self._best:
            self._best, self._best_epoch, self._at_best = float(fitness), epoch, usable
            return None
        if self._best_epoch is None or epoch - self._best_epoch < self.patience:
            return None
        ratio = _mean_ratio(usable, self._at_best)
        if ratio is None or ratio > 1 - FALL:
            return None
        self._fading_from = epoch + 1
        return (
            f"Over-distillation: the validation fitness has not risen since epoch {self._best_epoch + 1} "
            f"({self._best:.4f}), while the distillation loss fell by {1 - ratio:.1%}. "
            f"Distillation fades out over the next {FADE} epochs and stays out; guard=off keeps it."
        )

    def factor(self, epoch: float) -> float:
        """What to multiply the schedule's factor with.

        Args:
            epoch: epochs done, with fraction: 1.5 is the middle of the second epoch.
        """
        if self._fading_from is None:
            return 1.0
        return min(max(1 - (epoch - self._fading_from) / FADE, 0.0), 1.0)

    def broadcast(self) -> None:
        """Let every rank know what the first one decided: only that one has a validation result."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        told = [self.state()]
        distributed.broadcast_object_list(told, 0)
        self.load(told[0])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, in plain types."""
        return {
            "best": self._best,
            "best_epoch": self._best_epoch,
            "at_best": dict(self._at_best),
            "fading_from": self._fading_from,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self._best = state["best"]
        self._best_epoch = state["best_epoch"]
        self._at_best = dict(state["at_best"])
        self._fading_from = state["fading_from"]


def _mean_ratio(now: Mapping[str, float], then: Mapping[str, float]) -> float | None:
    """The geometric mean of now / then over what both have; None where they share nothing."""
    logs = [math.log(now[name] / then[name]) for name in now if name in then]
    return math.exp(sum(logs) / len(logs)) if logs else None
