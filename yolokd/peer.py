"""One of several trainings that take turns and teach one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.utils import LOGGER

from yolokd.compat.bars import headed
from yolokd.compat.training import unwrap_model
from yolokd.settings import Settled
from yolokd.teachers.opening import Networks
from yolokd.trainer import DistillationTrainer
from yolokd.turns import Turns


class Peer(DistillationTrainer):
    """A training whose teachers are trained beside it.

    It hands over before each batch, so that all do the same batch one after the other, and before it validates, saves
    and evaluates, so that all do that at the same point: a kill leaves their checkpoints at the same epoch, or, in the
    moment in which they are written, one epoch apart.

    Its class is not called a trainer on purpose: Ultralytics attaches experiment loggers (MLflow, TensorBoard, ...) to
    what is, and those know one run a process.

    Args:
        overrides: Ultralytics' keys, or with ``resume`` yolokd's as well.
        number: of the peer, from 0; its fresh weights are drawn with ``seed + number``.
        turns: whose turn it is.
        settled: the settings of a new run, from `settings.settle`; None where it is resumed.
    """

    def __init__(self, overrides: dict[str, Any], number: int, turns: Turns, settled: Settled | None = None) -> None:
        self._number = number
        self._turns = turns
        self._step = 0
        super().__init__(overrides=overrides, settled=settled)
        self.add_callback("on_val_batch_start", turns.check)  # a validation may be long

    def network(self) -> nn.Module:
        """What the others ask: the weights of this moment, not their average."""
        model: nn.Module = unwrap_model(self.model)
        return model

    def beside(self, others: Networks) -> None:
        """Say who the others are, by the names that ``teacher=peer:NAME`` gives them."""
        self.peers = others

    def train(self) -> None:
        """Ultralytics' own loop; the process's deterministic mode is left to the others, which may go on."""
        if self.accelerator is not None:
            self.accelerator.set_device(self.device)  # each thread has a current device of its own
        try:
            self._do_train()
        finally:
            self.run_callbacks("teardown")

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        """Ultralytics' own, with fresh weights that no other peer has.

        Only they have a seed of their own: Ultralytics also shuffles by torch's seed, and all are to see the same.
        """
        if not self._number:
            return super().get_model(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed + self._number)
            return super().get_model(*args, **kwargs)

    def seat_teachers(self) -> None:
        """Once every peer has built its network."""
        self._hand_over(-1, 0.0)
        super().seat_teachers()

    def run_callbacks(self, event: str) -> None:
        """Ultralytics' own; hands over before a batch and at the end of an epoch's batches."""
        if event == "on_train_epoch_start":
            self._step = 0
        elif event == "on_train_batch_start":
            self._hand_over(self.epoch, self._step / len(self.train_loader))
            self._step += 1
        elif event == "on_train_epoch_end":
            self._hand_over(self.epoch, 1.0)
        super().run_callbacks(event)

    def validate(self) -> Any:
        """Ultralytics' own, under the name of the peer."""
        LOGGER.info(f"{self.args.name}:")
        return super().validate()

    def save_model(self) -> bool:
        """Ultralytics' own, when all have validated."""
        self._hand_over(self.epoch, 2.0)
        return super().save_model()

    def final_eval(self) -> None:
        """Ultralytics' own, when all have saved."""
        self._hand_over(self.epoch, 3.0)
        super().final_eval()

    def progress_string(self) -> str:
        """Ultralytics' own with a column for the peer; the header stands once above the bars of all."""
        return headed(super().progress_string())

    def _hand_over(self, epoch: int, part: float) -> None:
        self._turns.wait(self.args.name, (epoch, part))
