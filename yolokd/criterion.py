"""The student's criterion, with distillation added to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from yolokd.balance import Balance
from yolokd.compat.boxes import anchor_points
from yolokd.compat.joined import flags
from yolokd.compat.training import AssignmentTap, PartialBCE, branch_losses, branches
from yolokd.guard import Guard
from yolokd.levels import assigned_at, take_levels
from yolokd.losses.base import LOSSES
from yolokd.matching import match_positives
from yolokd.predictions import Assigned, Predictions
from yolokd.pseudo import PseudoLabels, detections, weigh_unlabelled
from yolokd.schedule import Schedule
from yolokd.taps import StudentTaps
from yolokd.teachers.panel import Panel


class DistillationCriterion:
    """Detection loss plus the sum of gain(t) * loss, in the place where the student's own criterion stood.

    It calls that criterion, forwards its other attributes (``update`` of the end2end loss among them), and appends
    one value a distillation loss to its result. It is a plain class, never an ``nn.Module``: as a module it would
    register teacher and adapters in the student. Copied or pickled it becomes None, so that the EMA and the
    checkpoints hold a student and nothing else.

    Args:
        base: the student's own criterion.
        teachers: what answers for the teacher, or for all of them.
        losses: the losses by name.
        strides: pixels a cell of each level.
        schedule: the factor on all gains over training.
        balance: the gains, fixed or balanced.
        guard: the factor that falls where distillation harms.
        taps: what to listen to in the student beside its head's outputs.
        watch: measure the terms' gradients; impossible where the student is compiled.
        every: the teachers are asked in every so many-th step, and what they say counts so many times.
        pseudo: what becomes of images without labels (``unlabelled=``); None: there are none.
    """

    def __init__(
        self,
        base: Any,
        teachers: Panel,
        losses: nn.ModuleDict,
        strides: tuple[int, ...],
        schedule: Schedule,
        balance: Balance,
        guard: Guard | None = None,
        taps: StudentTaps | None = None,
        watch: bool = True,
        every: int = 1,
        pseudo: PseudoLabels | None = None,
    ) -> None:
        self.base = base
        self.teachers = teachers
        self.losses = losses
        self.strides = strides
        self.schedule = schedule
        self.balance = balance
        self.guard = guard or Guard(None)
        self.taps = taps
        self.watch = watch
        self.every = every
        self.pseudo = pseudo
        self.taught: dict[str, Tensor] = {}  # the boxes of the last batch, pseudo-boxes among them, to be shown
        self.epoch = 0.0
        self._step = 0.0
        tapped = taps is not None and taps.layers
        self._tapped = frozenset(name for name in losses if tapped and LOSSES[name].taps)
        self._sums: dict[str, Tensor] = {}
        self._counted = 0
        self._steps = 0  # of the training
        self._branches = branch_losses(base)
        losses_of = [b for b in (self._branches.dense, self._branches.one2one) if b is not None]
        self._assigners = [AssignmentTap(b) for b in losses_of]
        self._partial = [PartialBCE.install(b) for b in losses_of if pseudo is not None]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "base" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.base, name)

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def begin_epoch(self, epoch: int, batches: int, schedule: Schedule) -> None:
        """Say where in training we are.

        Args:
            epoch: epochs done.
            batches: batches in this epoch.
            schedule: the schedule; the length of a training can change while it runs (``time=``).
        """
        self.epoch, self._step, self.schedule = float(epoch), 1 / max(batches, 1), schedule
        # Counted over the whole training: with few batches an epoch each would else begin with the teacher.
        self._sums, self._counted, self._steps = {}, 0, epoch * batches
        self.balance.begin_epoch()

    def end_epoch(self, fitness: float | None) -> list[str]:
        """Look back at an epoch.

        Args:
            fitness: the student's on the validation split; None where that did not run.

        Returns:
            what a person should hear of.
        """
        # An adversary's loss is no distance: where it falls, the discriminator wins.
        distances = [name for name in self._sums if LOSSES[name].family != "adversarial"]
        means = {name: float(self._sums[name]) / self._counted for name in distances}
        done = round(self.epoch) - 1  # the epoch that has ended, from 0
        # On the ramp the adapters settle, and every loss falls.
        tripped = self.guard.end_epoch(done, fitness, means) if done >= self.schedule.begun else None
        return [*([tripped] if tripped else []), *self.balance.warnings()]

    @property
    def gains(self) -> dict[str, float]:
        """The gain of each loss at this moment."""
        return self.balance.gains

    @property
    def asks(self) -> bool:
        """Whether the teachers will be asked about the next batch; in the other steps they rest."""
        return self._distils or (self.pseudo is not None and self.epoch < self.pseudo.until)

    @property
    def _distils(self) -> bool:
        return self._factor > 0 and self._steps % self.every == 0

    @property
    def _factor(self) -> float:
        return self.schedule(self.epoch) * self.guard.factor(self.epoch)

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, beside the losses' parameters."""
        return {"balance": self.balance.state(), "guard": self.guard.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.balance.load(state["balance"])
        self.guard.load(state["guard"])

    def __call__(self, preds: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The detection loss with one distillation loss after the other appended, and all named items.

        Args:
            preds: raw output of the student's head.
            batch: Ultralytics' batch, ``img`` of shape ``(B, 3, H, W)`` among it.

        Returns:
            the losses, multiplied by B as Ultralytics does, and the items, which are not.
        """
        dense, one2one = branches(preds)
        assert dense.feats is not None
        anchors, strides = anchor_points(dense.feats, self.strides)
        sizes = [(f.shape[2], f.shape[3]) for f in dense.feats]
        levels = self.teachers.levels
        if self.taps is not None:
            dense = self.taps(dense)
        if not self.teachers.whole:
            dense = take_levels(dense, sizes, levels)
            one2one = None if one2one is None else take_levels(one2one, sizes, levels)
        self.teachers.progress(self._steps)
        batch, answers = self._label(batch, dense, anchors)
        total, items = self.base(preds, batch)
        assigned = [tap.take(strides) for tap in self._assigners]
        if not self.teachers.whole:
            assigned = [assigned_at(each, sizes, levels) for each in assigned]
        images = batch["img"].shape[0]
        factor, asked = self._factor, self._distils
        self.epoch, self._steps = self.epoch + self._step, self._steps + 1
        # Before the ramp, after kd_close and between two steps of teacher_every the teacher rests.
        terms = self._distil(dense, one2one, batch, assigned, answers) if asked else {}
        if spoken := bool(terms):
            self._look_at(total.sum() / images, terms, dense, factor)
        terms = terms or {name: total.new_zeros(()) for name in self.losses}
        terms = {name: self.every * factor * self.gains[name] * value for name, value in terms.items()}
        items = dict(items) | {f"kd_{name}_loss": value.detach() for name, value in terms.items()}
        for name, loss in self.losses.items():
            logged: Mapping[str, Tensor] = getattr(loss, "logged", {})
            items |= {f"kd_{name}_{k}": (self.every if spoken else 0) * v for k, v in logged.items()}
        return torch.cat([total, *(value.view(1) * images for value in terms.values())]), items

    def _label(
        self, batch: Mapping[str, Any], dense: Predictions, anchors: Tensor
    ) -> tuple[Mapping[str, Any], list[Predictions] | None]:
        """Give the images without labels their targets, and keep the class term from the rest of them.

        Returns:
            the batch with pseudo-boxes among its labels, and what the teachers said of it, if they were asked.
        """
        unlabelled = None if self.pseudo is None else flags(batch)
        answers = None
        targets = None
        if self.pseudo is not None and unlabelled is not None:
            assert dense.feats is not None
            assert dense.scores is not None
            classes = dense.scores.shape[1]
            targets = self.pseudo.nothing(unlabelled, anchors, classes)
            if self.epoch < self.pseudo.until:
                answers = self.teachers.ask(batch, dense)
            if answers is not None:
                taught = anchor_points(dense.feats, tuple(self.strides[i] for i in self.teachers.levels))
                found = detections(answers, unlabelled, *taught, classes)
                targets = self.pseudo(found, unlabelled, anchors, (batch["img"].shape[3], batch["img"].shape[2]))
        for term in self._partial:
            term.ignored = None if targets is None else targets.ignored
        batch = batch if targets is None else targets.beside(batch)
        self.taught = {} if targets is None else {key: batch[key].detach() for key in ("batch_idx", "cls", "bboxes")}
        return batch, answers

    def _look_at(self, detection: Tensor, terms: Mapping[str, Tensor], dense: Predictions, factor: float) -> None:
        """Note what the guard and the balance want to know: the terms' values, and now and then their gradients."""
        self._counted += 1
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        if not self.watch or not detection.requires_grad or not self.balance.due(factor):
            return
        assert dense.feats is not None
        elsewhere = {name: dense.taps for name in self._tapped if dense.taps is not None}
        self.balance.measure(detection, terms, dense.feats, elsewhere)

    def _distil(
        self,
        dense: Predictions,
        one2one: Predictions | None,
        batch: Mapping[str, Any],
        assigned: list[Assigned],
        answers: list[Predictions] | None,
    ) -> dict[str, Tensor]:
        """The value of each loss, without gain, both branches of an end2end student together; nothing unanswered."""
        taught = assigned[0]
        teacher = self.teachers(batch, dense, taught.anchors, taught.strides, taught.seen, answers)
        if teacher is None:
            return {}
        dense_gain, one2one_gain = self._branches.gains()
        with torch.autocast(batch["img"].device.type, enabled=False):  # a soft target in half precision is a hard one
            here = weigh_unlabelled(taught, teacher, batch["img"].shape[0], flags(batch))
            # The one-to-many branch is all that teaches an end2end student's pyramid, and its weight falls over
            # training: a feature loss that stayed would outgrow it.
            views = {False: (dense, teacher), True: (at_taps(dense), at_taps(teacher))}
            terms = {name: dense_gain * loss(*views[name in self._tapped], here) for name, loss in self.losses.items()}
            speaking = [name for name in self.losses if LOSSES[name].one2one]
            if one2one is not None and speaking and teacher.boxes is not None:
                matched = match_positives(one2one, teacher, assigned[1])
                for name in speaking:
                    terms[name] = terms[name] + one2one_gain * self.losses[name](*matched)
        return terms


def at_taps(predictions: Predictions) -> Predictions:
    """The predictions as a loss sees them that looks at the layers of ``taps=`` instead of the pyramid."""
    members = None if predictions.members is None else tuple(at_taps(member) for member in predictions.members)
    feats = predictions.feats if predictions.taps is None else predictions.taps
    return replace(predictions, feats=feats, members=members)
