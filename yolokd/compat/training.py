"""The places in Ultralytics' training loop where distillation enters; what a release changes there is mended here."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import ultralytics.engine.trainer as engine
from torch import Tensor, nn
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from yolokd.predictions import Assigned, Predictions

PARTIAL = ".partial"  # ends the name of what is being written; as a whole name, a stage for `commit`
_COMPLETE = ".complete"

__all__ = [
    "PARTIAL",
    "AssignmentTap",
    "atomic_replace",
    "atomic_strip",
    "begin_folder",
    "branches",
    "commit",
    "freeze",
    "plain_optimizer",
    "recover",
    "staged",
    "strip_checkpoint",
    "unwrap_model",
]


def freeze(model: Any) -> Any:
    """Make a detector a teacher: fused, without gradient, its head in a mode that decodes nothing.

    A head in training mode returns its raw predictions and skips the decoding of boxes. An end2end head would lose
    its one-to-many branch when fused, the one that a dense loss needs, so its own ``fuse`` is held back.

    Args:
        model: a DetectionModel, changed in place.
    """
    head = model.model[-1]
    head.fuse = lambda: None
    model.fuse(verbose=False)
    del head.fuse
    model.eval().requires_grad_(False)
    head.training = True
    return model


def branches(preds: Any) -> tuple[Predictions, Predictions | None]:
    """Read the raw output of a Detect head.

    Args:
        preds: what the model returned: the dict of a training forward, or a tuple whose second item it is.

    Returns:
        the dense (one-to-many) predictions, and those of the one-to-one branch where there is one.
    """
    raw: Mapping[str, Any] = preds[1] if isinstance(preds, tuple) else preds
    if "one2many" in raw:
        return _predictions(raw["one2many"]), _predictions(raw["one2one"])
    return _predictions(raw), None


def _predictions(raw: Mapping[str, Any]) -> Predictions:
    return Predictions(raw["scores"], raw["boxes"], tuple(raw["feats"]))


class AssignmentTap:
    """Overhears the assigner of a detection loss: which ground truth each anchor was given, and how much it counts.

    The loss itself returns no target scores. The hook sees what goes into the assigner and what comes out.

    Args:
        loss: the detection loss of one branch, with an ``assigner`` module.
    """

    def __init__(self, loss: Any) -> None:
        self._seen: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
        loss.assigner.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        self._seen = (args, output)

    def take(self, strides: Tensor) -> Assigned:
        """The assignment of the batch that the loss has just seen, forgotten afterwards.

        Args:
            strides: ``(A,)`` pixels a cell of each anchor's level.

        Raises:
            RuntimeError: the loss has not called its assigner since the last time.
        """
        if self._seen is None:
            raise RuntimeError("the detection loss did not call its assigner; this Ultralytics is not supported")
        (_, _, anchors, gt_labels, gt_boxes, mask_gt, *_), output = self._seen
        self._seen = None
        labels, boxes, scores, foreground, gt_index = output
        image, row = mask_gt.squeeze(-1).bool().nonzero(as_tuple=True)
        weight = scores.float().sum(-1)  # (B, A); one class is not 0 at most
        return Assigned(
            labels=labels.long(),
            boxes=boxes.float(),
            scores=scores.float(),
            foreground=foreground.bool(),
            gt_index=gt_index.long(),
            gt_boxes=gt_boxes[image, row].float(),
            gt_labels=gt_labels[image, row, 0].long(),
            gt_image=image,
            anchors=anchors.float(),
            strides=strides.float(),
            weight=weight,
            normalizer=weight.sum().clamp(min=1),  # as Ultralytics' own target_scores_sum
        )


@dataclass(frozen=True)
class BranchLosses:
    """The detection losses of a student's branches, and how much each counts now.

    Attributes:
        dense: the loss of the one-to-many branch, or of the only one.
        one2one: the loss of the one-to-one branch, or None.
        gains: ``() -> (dense, one2one)`` weights that the end2end loss gives its branches at this moment.
    """

    dense: Any
    one2one: Any | None
    gains: Callable[[], tuple[float, float]]


def branch_losses(criterion: Any) -> BranchLosses:
    """Find the losses inside a student's criterion (v8DetectionLoss, E2ELoss, E2EDetectLoss)."""
    if hasattr(criterion, "one2many"):
        # E2EDetectLoss (older YOLOv10) has no o2m: both its branches count fully.
        return BranchLosses(
            criterion.one2many,
            criterion.one2one,
            lambda: (float(getattr(criterion, "o2m", 1.0)), float(getattr(criterion, "o2o", 1.0))),
        )
    return BranchLosses(criterion, None, lambda: (1.0, 0.0))


@contextmanager
def plain_optimizer(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Hide the adapters' group, so that what is saved or loaded in between is a plain Ultralytics optimizer.

    Args:
        optimizer: the student's, its adapter group last; nothing happens where there is none.
    """
    groups = optimizer.param_groups if optimizer is not None else []
    if optimizer is None or groups[-1].get("param_group") != "adapter":
        yield
        return
    group = groups.pop()
    state = {p: optimizer.state.pop(p) for p in group["params"] if p in optimizer.state}
    try:
        yield
    finally:
        # load_state_dict replaces the list and the state, so both are looked up again.
        optimizer.param_groups.append(group)
        optimizer.state.update(state)


def atomic_replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a torn one.

    Args:
        path: where it belongs.
        write: writes it to the path that it is given (in the same folder, so that the rename is atomic).
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def begin_folder(folder: Path, name: str, text: str) -> None:
    """Write a run folder's first file.

    A new folder appears with the file in it: at no moment is there a run that cannot be resumed.

    Args:
        folder: the run folder, there already or not.
        name: the file's.
        text: its content.
    """
    if folder.exists():
        atomic_replace(folder / name, lambda partial: partial.write_text(text, encoding="utf-8"))
        return
    stage = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed right here
    stage.mkdir(parents=True)
    (stage / name).write_text(text, encoding="utf-8")
    stage.replace(folder)


def commit(stage: Path, folder: Path) -> None:
    """Move files that belong together into a folder, all of them or none, whenever the process is killed.

    The stage is first renamed to ``.complete``: from then on `recover` finishes what a kill leaves undone.

    Args:
        stage: a folder inside ``folder`` with the new files.
        folder: where they belong.
    """
    for file in stage.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    _move_in(stage.replace(folder / _COMPLETE), folder)


@contextmanager
def staged(trainer: Any) -> Iterator[None]:
    """Let Ultralytics write its checkpoints into a folder beside them, then move them all into place.

    Args:
        trainer: its ``wdir``, ``last`` and ``best`` point into the stage meanwhile.
    """
    weights, last, best = trainer.wdir, trainer.last, trainer.best
    stage = weights / PARTIAL
    shutil.rmtree(stage, ignore_errors=True)
    trainer.wdir, trainer.last, trainer.best = stage, stage / last.name, stage / best.name
    try:
        yield
    finally:
        trainer.wdir, trainer.last, trainer.best = weights, last, best
    commit(stage, weights)


def recover(folder: Path, forward: bool = True) -> None:
    """Finish or discard what a killed run was writing into its folder of weights and the run folder around it.

    Args:
        folder: the folder of weights; it need not exist.
        forward: finish a complete set of checkpoints; else it is discarded, for a run that begins anew there.
    """
    complete, last = folder / _COMPLETE, folder / "last.pt"
    # Older than last.pt is a set that another trainer has overtaken since.
    staged = complete / "last.pt"
    if forward and staged.is_file() and not (last.is_file() and last.stat().st_mtime > staged.stat().st_mtime):
        _move_in(complete, folder)
    for rest in (complete, folder / PARTIAL):
        shutil.rmtree(rest, ignore_errors=True)
    for place in (folder, folder.parent):
        for file in place.glob(f".*{PARTIAL}"):
            file.unlink(missing_ok=True)


def _move_in(stage: Path, folder: Path) -> None:
    """last.pt goes last: while it is in the stage, `recover` knows that something is left to do."""
    for file in sorted(stage.iterdir(), key=lambda file: file.name == "last.pt"):
        file.replace(folder / file.name)
    stage.rmdir()


def strip_checkpoint(path: str | Path, updates: dict[str, Any] | None = None) -> dict[str, Any]:
    """Turn a training checkpoint into a finished one, by rename; Ultralytics writes over the file in place.

    Args:
        path: the checkpoint.
        updates: entries to overlay.

    Returns:
        the content of the finished checkpoint.
    """
    result: dict[str, Any] = {}
    atomic_replace(Path(path), lambda partial: result.update(strip_optimizer(path, str(partial), updates)))
    return result


@contextmanager
def atomic_strip() -> Iterator[None]:
    """Let Ultralytics' final evaluation strip checkpoints by rename."""

    def strip(f: str | Path, s: str = "", updates: dict[str, Any] | None = None) -> dict[str, Any]:
        return strip_checkpoint(f, updates)

    with mock.patch.object(engine, "strip_optimizer", strip):
        yield
