"""Ultralytics' DetectionTrainer with a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_save_dir
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK

from yolokd.adapters import add_to_optimizer, average_gradients
from yolokd.balance import Balance
from yolokd.classes import trained_classes
from yolokd.compat.checkpoint import head_info, restricted_loading
from yolokd.compat.files import begin_folder, recover
from yolokd.compat.larger import asked_side
from yolokd.compat.training import settle_rate, unwrap_model
from yolokd.criterion import DistillationCriterion
from yolokd.feeding import FeedingTrainer
from yolokd.guard import Guard
from yolokd.keys import MANIFEST, arguments_yaml
from yolokd.losses.base import LOSSES
from yolokd.needs import refuse_device
from yolokd.schedule import Schedule
from yolokd.seating import fit_losses, open_panel, teachers_device
from yolokd.settings import Settled, handed_down, settle
from yolokd.taps import StudentTaps, entry_depth
from yolokd.teachers.live import resolve_precision
from yolokd.teachers.opening import NOBODY
from yolokd.teachers.panel import Panel
from yolokd.teachers.spec import read_teachers

RECIPE = "distill.yaml"  # in the run folder: the settings, in the form that recipe= reads
_CLIP = 10.0  # Ultralytics clips the model's gradient norm at 10; the adapters are clipped alike


class DistillationTrainer(FeedingTrainer):
    """Train a student under a teacher; everything that is not distillation is Ultralytics' own.

    Used as ``YOLO(student).train(trainer=DistillationTrainer, teacher=..., data=...)`` or through
    ``yolokd.distill``. The student is never wrapped: EMA, checkpoints, validation and export see what Ultralytics
    built.

    Args:
        cfg: Ultralytics' default settings.
        overrides: Ultralytics' train arguments and yolokd's keys, mixed.
        _callbacks: Ultralytics' callbacks.
        settled: what `settings.settle` has made of the overrides already.

    Raises:
        UserError: the settings, the pair or the data cannot work; nothing has been written then.
    """

    loss_names: tuple[str, ...]
    peers = NOBODY  # whom teacher=peer:NAME asks

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
        settled: Settled | None = None,
    ) -> None:
        self.panel: Panel | None = None
        self.losses = nn.ModuleDict()
        self.criterion: DistillationCriterion | None = None
        self._course = {}
        self.config, self.sidecar, theirs = settled or settle(dict(overrides or {}), worker=LOCAL_RANK != -1)
        with restricted_loading(self.config.trust):
            super().__init__(cfg, theirs, _callbacks)

    # Settings ---------------------------------------------------------------------------------------------------

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Ultralytics' own, then the settings are written down as the run folder's first file.

        A run that is killed before its first checkpoint begins again from that file.
        """
        super().check_resume(overrides)
        if RANK not in {-1, 0} or self.resume:
            return
        folder = get_save_dir(self.args)
        self.args.save_dir = str(folder)
        recover(folder / "weights", forward=False)
        if folder.is_dir():  # of earlier trainings (exist_ok=True): resume would take this one for theirs
            (folder / MANIFEST).unlink(missing_ok=True)
        begin_folder(folder, RECIPE, self.config.to_yaml() + arguments_yaml(vars(self.args)))

    def train(self) -> Any:
        """Train; the settings stand in the environment while workers are spawned."""
        if not self.ddp:
            return super().train()
        refuse_device(self.config, {"device": self.args.device})  # a run that is resumed has its devices only now
        with handed_down(self.config, self.sidecar):
            return super().train()

    # Set-up -----------------------------------------------------------------------------------------------------

    def setup_model(self) -> Any:
        """Build the student as Ultralytics does, then teacher and losses, before AutoBatch and the optimizer."""
        with restricted_loading(self.config.trust):
            checkpoint = super().setup_model()
        teachers = [spec.path for spec in read_teachers(self.config.teacher)] if self.config.teacher else []
        used = {Path(str(path)).resolve() for path in (self.args.model, *teachers)}
        if RANK in {-1, 0} and not self.resume and self.last.resolve() not in used:
            self.last.unlink(missing_ok=True)  # of an earlier run (exist_ok=True), which resume would go on with
        if self.config.losses:
            self.seat_teachers()
        return checkpoint

    def seat_teachers(self) -> None:
        """Open the teachers and build the losses."""
        student = replace(head_info(self.model), names=dict(self.data["names"]))
        self.panel = open_panel(
            *(self.config, student, self.device),
            network=lambda: unwrap_model(self.ema.ema),
            peers=self.peers,
            only=trained_classes(self.args.classes),
            imgsz=asked_side(self.args.imgsz),
            replay=bool(self.config.teacher_cache),
        )
        self.losses = fit_losses(self.config, self.panel, self.model, self.args.seed).to(self.device)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The student's optimizer with a group for the adapters, so that they train from the first step."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        add_to_optimizer(optimizer, list(self.losses.parameters()))
        return optimizer

    def auto_batch(self) -> int:
        """The batch size that fits with the teacher running beside the student; the losses' share is not counted."""
        panel = self.panel
        if panel is None:
            return int(super().auto_batch())
        self._lower_teacher()
        held: list[Any] = []

        def beside(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # After the student, whose activations are alive then, as they are in training.
            held[:] = panel.beside(inputs[0])

        handle = self.model.register_forward_hook(beside)
        least = max(LOSSES[name].batch for name in self.losses)  # a loss that compares images needs some
        try:
            found = int(super().auto_batch())
        finally:
            handle.remove()
        return max(found, least)

    def _setup_train(self) -> None:
        """Ultralytics' own; after it, since resume replaces an end2end criterion, ours takes the criterion's place."""
        super()._setup_train()
        if self.panel is None:
            return
        self._lower_teacher()
        student = unwrap_model(self.model)
        base = getattr(student, "criterion", None) or student.init_criterion()
        taps = StudentTaps(student, [s for s, _ in self.config.taps], entry_depth(self.losses))
        self.criterion = student.criterion = DistillationCriterion(
            base,
            self.panel,
            self.losses,
            head_info(student).strides,
            self._schedule(),
            Balance(self.config.balance, self.config.losses),
            Guard(self.config.guard_patience),
            taps,
            # The layers of a compiled student are one step of autograd: nothing can be asked for in between.
            watch=not self.args.compile,
            every=self.config.teacher_every,
            pseudo=self.pseudo_labels(),
        )
        if self._course:
            self.criterion.load(self._course)

    def _lower_teacher(self) -> None:
        """To the precision that is known once Ultralytics has decided about AMP."""
        assert self.panel is not None
        wanted, place = self.config.teacher_precision, teachers_device(self.config, self.device)
        self.panel.to_precision(resolve_precision(wanted, place, self.amp, self.args.amp == "bf16"))
        if self.config.teacher_compile:
            self.panel.compile()

    def _schedule(self) -> Schedule:
        return Schedule(
            self.config.schedule, self.epochs, self.args.warmup_epochs, self.config.closing, self.config.kd_start
        )

    def _setup_scheduler(self) -> None:
        """Ultralytics' own learning rate, which has come to its end where the refinement begins."""
        super()._setup_scheduler()
        if self.config.refine_epochs:
            settle_rate(self, self.config.refine_epochs)

    # The loop ---------------------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device; a teacher on another one begins its answer here, before the student does."""
        batch = super().preprocess_batch(batch)
        if self.panel is not None and self.criterion is not None and self.criterion.asks:
            self.panel.begin(batch)
        return batch

    def run_callbacks(self, event: str) -> None:
        """Ultralytics' own; the schedule is told where an epoch begins (also one begun again after a lack of memory).

        Not a callback of ours: those are pickled for the workers, and a bound method would take the trainer along.
        """
        if event == "on_train_epoch_start" and self.criterion is not None:
            self.criterion.begin_epoch(self.epoch, len(self.train_loader), self._schedule())
        if event == "on_fit_epoch_end" and self.criterion is not None:
            self.criterion.guard.broadcast()
        super().run_callbacks(event)

    def optimizer_step(self) -> None:
        """Average the adapters' gradients over ranks, clip them, then Ultralytics' own step.

        DDP and the clipping know only the model. The average comes before ``unscale_``: a rank that alone saw an
        infinity would skip a step that the others take.
        """
        adapters = [p for p in self.losses.parameters() if p.grad is not None]
        if adapters:
            average_gradients(adapters)
            # Still scaled here, so the limit is scaled as well.
            nn.utils.clip_grad_norm_(adapters, _CLIP * self.scaler.get_scale())
        super().optimizer_step()

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Ultralytics' own without ``val/kd_*``: validation runs no teacher, those columns would stay 0."""
        labels = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return labels
        kept = [label for label in labels if not label.startswith("val/kd_")]
        return {label: labels[label] for label in kept} if isinstance(labels, dict) else kept

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Ultralytics' own with the gains and shares of the losses; here the epoch is looked back at.

        On the first process only, and before the checkpoint is written: what the guard decides is saved with it.
        """
        if self.criterion is None:
            super().save_metrics(metrics)
            return
        fitness = None if self.fitness is None else float(self.fitness)
        for line in self.criterion.end_epoch(fitness):
            LOGGER.warning(line)
        if line := self.criterion.balance.line():
            LOGGER.info(line)
        super().save_metrics({**metrics, **self.criterion.balance.columns()})

    def progress_string(self) -> str:
        """Ultralytics' own; a column is 11 characters wide, so ``kd_cls_loss`` is headed ``kd_cls`` there."""
        names = self.loss_names
        self.loss_names = tuple(n.removesuffix("_loss")[:10] if n.startswith("kd_") else n for n in names)
        try:
            return str(super().progress_string())
        finally:
            self.loss_names = names
