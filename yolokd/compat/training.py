"""The places in Ultralytics' training loop where distillation enters; what a release changes there is mended here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unset_deterministic, unwrap_model

from yolokd.predictions import Assigned, Predictions

__all__ = [
    "AssignmentTap",
    "PartialBCE",
    "branches",
    "freeze",
    "plain_optimizer",
    "settle_rate",
    "unset_deterministic",
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
        (said, decoded, anchors, gt_labels, gt_boxes, mask_gt, *_), output = self._seen
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
            seen=(said.float(), decoded.float()),
        )


class PartialBCE(nn.BCEWithLogitsLoss):
    """The class term of a detection loss, silent where nobody knows whether there is an object.

    It stands in the place of the loss's own ``bce`` and equals it, bit by bit, until something is ignored.
    """

    def __init__(self) -> None:
        super().__init__(reduction="none")
        self.ignored: Tensor | None = None

    @classmethod
    def install(cls, loss: Any) -> PartialBCE:
        """Put one into a detection loss.

        Args:
            loss: the detection loss of one branch.

        Raises:
            RuntimeError: its class term is computed in another way than by BCE with logits.
        """
        if type(loss.bce) is not nn.BCEWithLogitsLoss or loss.bce.reduction != "none":
            raise RuntimeError("the detection loss has no BCE of its own; this Ultralytics is not supported")
        partial = loss.bce = cls()
        return partial

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """BCE of ``(B, A, C)`` logits, 0 at what is ``ignored``, unless the assigner has put an object there."""
        value: Tensor = super().forward(input, target)
        return value if self.ignored is None else value.masked_fill(self.ignored & (target <= 0), 0.0)


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


def settle_rate(trainer: Any, epochs: int) -> None:
    """Let the learning rate reach its final value that many epochs before the end, and stay there.

    Args:
        trainer: its scheduler has just been set up.
        epochs: epochs at the end, fewer than the training has.
    """
    decay, whole = trainer.lf, trainer.epochs
    trainer.lf = lambda epoch: decay(min(epoch * whole / (whole - epochs), whole))
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lr_lambda=trainer.lf)


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
