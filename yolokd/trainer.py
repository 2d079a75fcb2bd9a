"""Ultralytics' DetectionTrainer with a teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_save_dir
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK
from ultralytics.utils.files import get_latest_run

from yolokd.adapters import add_to_optimizer, average_gradients
from yolokd.classes import ClassMap, trained_classes
from yolokd.compat.checkpoint import (
    find_checkpoint,
    head_info,
    load_detector,
    read_checkpoint,
    restricted_loading,
    sha256,
)
from yolokd.compat.training import (
    atomic_replace,
    atomic_strip,
    begin_folder,
    plain_optimizer,
    recover,
    staged,
    unwrap_model,
)
from yolokd.config import DistillConfig, build_config, check_against_epochs, split_keys
from yolokd.criterion import DistillationCriterion
from yolokd.errors import UserError
from yolokd.keys import arguments_yaml
from yolokd.losses.base import build_losses
from yolokd.predictions import Pair
from yolokd.preflight import preflight, preflight_plain
from yolokd.schedule import Schedule
from yolokd.sidecar import Sidecar, complete_rows, load_sidecar
from yolokd.teachers.live import LiveTeacher, resolve_precision

RECIPE = "distill.yaml"  # in the run folder: the settings, in the form that recipe= reads
_ENVIRONMENT = "YOLOKD_SETTINGS"  # how they reach the spawned workers of a multi-GPU run
_CLIP = 10.0  # Ultralytics clips the model's gradient norm at 10; the adapters are clipped alike


class DistillationTrainer(DetectionTrainer):  # type: ignore[misc]
    """Train a student under a teacher; everything that is not distillation is Ultralytics' own.

    Used as ``YOLO(student).train(trainer=DistillationTrainer, teacher=..., data=...)`` or through
    ``yolokd.distill``. The student is never wrapped: EMA, checkpoints, validation and export see what Ultralytics
    built.

    Args:
        cfg: Ultralytics' default settings.
        overrides: Ultralytics' train arguments and yolokd's keys, mixed.
        _callbacks: Ultralytics' callbacks.

    Raises:
        UserError: the settings, the pair or the data cannot work; nothing has been written then.
    """

    # Attributes of Ultralytics' trainer, which has no types.
    loss_names: tuple[str, ...]
    wdir: Path
    last: Path
    best: Path

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: dict[str, Any] | None = None
    ) -> None:
        self.teacher: LiveTeacher | None = None
        self.losses = nn.ModuleDict()
        self.criterion: DistillationCriterion | None = None
        self.sidecar: Sidecar | None = None
        self.config, theirs = self._settings(dict(overrides or {}))
        with restricted_loading(self.config.trust):
            super().__init__(cfg, theirs, _callbacks)

    # Settings ---------------------------------------------------------------------------------------------------

    def _settings(self, overrides: dict[str, Any]) -> tuple[DistillConfig, dict[str, Any]]:
        """Part our keys from Ultralytics'; check what can be checked before a run folder exists."""
        if LOCAL_RANK != -1 and _ENVIRONMENT in os.environ:
            # A worker: Ultralytics rebuilt its arguments, the parent has checked everything.
            settings = json.loads(os.environ[_ENVIRONMENT])
            self.sidecar = Sidecar(settings["config"], settings["sha256"])
            return DistillConfig.from_dict(settings["config"]), overrides
        ours, theirs = split_keys(overrides)
        if theirs.get("resume"):
            return self._resumed(ours, theirs), theirs
        config = build_config(ours)
        self.sidecar = Sidecar(config.to_dict(), "")  # without losses too: resume reads the settings there
        if config.losses:
            check_against_epochs(config, int(theirs.get("epochs") or DEFAULT_CFG.epochs), theirs.get("time"))
            report = preflight(config, theirs)
            for line in report.lines:
                LOGGER.info(line)
            # Absolute, so that the run can be resumed from another folder.
            config = replace(config, teacher=str(report.teacher_file))
            self.sidecar = Sidecar(config.to_dict(), sha256(report.teacher_file))
        else:
            preflight_plain(config, theirs)
        return config, theirs

    def _resumed(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> DistillConfig:
        """The settings of the run that is resumed; the teacher's file may have moved, but not changed."""
        resume = theirs["resume"]
        last = Path(get_latest_run() if isinstance(resume, bool) or str(resume) == "True" else resume)
        recover(last.parent)
        self.sidecar = load_sidecar(last.parent)
        settings = dict(self.sidecar.config)
        settings |= {key: ours[key] for key in ("teacher", "trust", "teacher_precision") if key in ours}
        if ignored := sorted(set(ours) - {"teacher", "trust", "teacher_precision"}):
            LOGGER.warning(f"Resume ignores {', '.join(ignored)}: the run goes on with the settings it began with.")
        config = DistillConfig.from_dict(settings)
        if config.losses:
            file = find_checkpoint(config.teacher, role="teacher")
            if sha256(file) != self.sidecar.teacher_sha256:
                raise UserError(
                    f"The teacher {config.teacher} is not the file that this run began with (its SHA-256 differs).",
                    "Give that file with teacher=PATH, or start a new run.",
                )
            config = replace(config, teacher=str(file))
        self.sidecar = replace(self.sidecar, config=config.to_dict())  # where the teacher lies now
        return config

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
        begin_folder(folder, RECIPE, self.config.to_yaml() + arguments_yaml(vars(self.args)))

    def train(self) -> Any:
        """Train; the settings stand in the environment while workers are spawned."""
        if not self.ddp:
            return super().train()
        settings = {"config": self.config.to_dict(), "sha256": self.sidecar.teacher_sha256 if self.sidecar else ""}
        os.environ[_ENVIRONMENT] = json.dumps(settings)
        try:
            return super().train()
        finally:
            del os.environ[_ENVIRONMENT]

    # Set-up -----------------------------------------------------------------------------------------------------

    def setup_model(self) -> Any:
        """Build the student as Ultralytics does, then teacher and losses, before AutoBatch and the optimizer."""
        with restricted_loading(self.config.trust):
            checkpoint = super().setup_model()
        used = {Path(str(path)).resolve() for path in (self.args.model, self.config.teacher)}
        if RANK in {-1, 0} and not self.resume and self.last.resolve() not in used:
            self.last.unlink(missing_ok=True)  # of an earlier run (exist_ok=True), which resume would go on with
        if self.config.losses:
            model = load_detector(self.config.teacher, role="teacher", trust=self.config.trust)
            self.teacher = LiveTeacher(model, self.device, "fp32", self.config.teacher)
            pair = Pair(head_info(self.model), self.teacher.info)
            losses = build_losses(self.config.losses, self.config.loss_options, pair, self.args.seed)
            self.losses = losses.to(self.device)
        return checkpoint

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The student's optimizer with a group for the adapters, so that they train from the first step."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        add_to_optimizer(optimizer, list(self.losses.parameters()))
        return optimizer

    def auto_batch(self) -> int:
        """The batch size that fits with the teacher running beside the student; the losses' share is not counted."""
        teacher = self.teacher
        if teacher is None:
            return int(super().auto_batch())
        self._lower_teacher()
        held: list[Any] = []

        def beside(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # After the student, whose activations are alive then, as they are in training.
            held[:] = [teacher.forward(inputs[0])]

        handle = self.model.register_forward_hook(beside)
        try:
            return int(super().auto_batch())
        finally:
            handle.remove()

    def _setup_train(self) -> None:
        """Ultralytics' own; after it, since resume replaces an end2end criterion, ours takes the criterion's place."""
        super()._setup_train()
        if self.teacher is None:
            return
        self._lower_teacher()
        student = unwrap_model(self.model)
        base = getattr(student, "criterion", None) or student.init_criterion()
        only = trained_classes(self.args.classes)
        class_map = ClassMap.by_name(self.teacher.info.names, self.data["names"], self.config.class_map, only)
        self.criterion = student.criterion = DistillationCriterion(
            base, self.teacher, self.losses, self.config.losses, class_map, head_info(student).strides, self._schedule()
        )

    def _lower_teacher(self) -> None:
        """To the precision that is known once Ultralytics has decided about AMP."""
        assert self.teacher is not None
        wanted = self.config.teacher_precision
        self.teacher.to_precision(resolve_precision(wanted, self.device, self.amp, self.args.amp == "bf16"))

    def _schedule(self) -> Schedule:
        return Schedule(self.config.schedule, self.epochs, self.args.warmup_epochs, self.config.kd_close)

    # The loop ---------------------------------------------------------------------------------------------------

    def run_callbacks(self, event: str) -> None:
        """Ultralytics' own; the schedule is told where an epoch begins (also one begun again after a lack of memory).

        Not a callback of ours: those are pickled for the workers, and a bound method would take the trainer along.
        """
        if event == "on_train_epoch_start" and self.criterion is not None:
            self.criterion.begin_epoch(self.epoch, len(self.train_loader), self._schedule())
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

    def progress_string(self) -> str:
        """Ultralytics' own; a column is 11 characters wide, so ``kd_cls_loss`` is headed ``kd_cls`` there."""
        names = self.loss_names
        self.loss_names = tuple(n.removesuffix("_loss") if n.startswith("kd_") else n for n in names)
        try:
            return str(super().progress_string())
        finally:
            self.loss_names = names

    # Checkpoints ------------------------------------------------------------------------------------------------

    def save_model(self) -> bool:
        """Write ``distill.pt``, then the checkpoints, each by rename, ``last.pt`` the last of all."""
        if self.sidecar is not None and self.optimizer is not None:
            self.sidecar = self.sidecar.with_epoch(self.epoch, self.losses, self.optimizer)
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
        if len(list(self.losses.parameters())):
            self.sidecar = replace(load_sidecar(self.wdir), config=self.config.to_dict())
            self.sidecar.restore(ckpt["epoch"], self.losses, self.optimizer)
            LOGGER.info(f"Adapters restored from distill.pt, epoch {ckpt['epoch'] + 1}.")

    def final_eval(self) -> None:
        """Ultralytics' own, with the checkpoints stripped by rename."""
        if self.resume and RANK in {-1, 0} and self.best.is_file():  # perhaps not written by this process
            read_checkpoint(self.best, role="best.pt", trust=self.config.trust)
        with atomic_strip(), restricted_loading(self.config.trust):
            super().final_eval()
