"""Where a loss looks beside the outputs of the two heads: layers of the backbone, and inside the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from yolokd.compat.taps import HeadTap, LayerTap, layer_info
from yolokd.errors import UserError
from yolokd.losses.base import LOSSES
from yolokd.predictions import HeadInfo, Pair, Predictions


def tapped_pair(
    pair: Pair, student: Any, teacher: Any, layers: Sequence[tuple[int, int]], ratio: float = 1.0
) -> Pair | None:
    """The pair as a loss sees it that compares the layers of ``taps=``.

    Args:
        pair: the two heads.
        student: the student, a DetectionModel.
        teacher: the teacher, likewise.
        layers: pairs of layers, (student, teacher).
        ratio: side of the teacher's image over the side of the student's.

    Returns:
        the pair with the strides and widths of these layers; None where there are no taps.

    Raises:
        UserError: a layer that does not exist or gives no feature map, or two that differ in stride.
    """
    if not layers:
        return None
    ours = _at(pair.student, student, "student", [s for s, _ in layers])
    theirs = _at(pair.teacher, teacher, "teacher", [t for _, t in layers])
    for (s, t), mine, other in zip(layers, ours.strides, theirs.strides, strict=True):
        if mine * ratio != other:
            larger = f", in images {ratio:g} times as large" if ratio != 1 else ""
            raise UserError(
                f"taps={s}:{t}: layer {s} of the student has stride {mine}, layer {t} of the teacher {other}{larger}.",
                "Pair layers of one stride: taps=STUDENT:TEACHER,... (`yolo train` prints the layers of a model).",
            )
    return Pair(ours, replace(theirs, strides=ours.strides))


def _at(info: HeadInfo, model: Any, role: str, layers: Sequence[int]) -> HeadInfo:
    try:
        strides, widths = layer_info(model, layers, int(model.yaml.get("channels", 3)))
    except ValueError as error:
        raise UserError(f"taps: {role}: {str(error).rstrip('.')}.", "Name layers that give one feature map.") from None
    return replace(info, strides=tuple(strides), widths=tuple(widths), hidden=())


def entry_depth(losses: Mapping[str, nn.Module] | nn.ModuleDict) -> int | None:
    """After how many convolutions the student enters the teacher's head; None where no loss does that."""
    entering: list[Any] = [loss for name, loss in losses.items() if "reenter" in LOSSES[name].needs]
    return int(entering[0].depth) if entering else None


class StudentTaps:
    """Adds to the student's predictions what its head does not give.

    Args:
        student: the student, unwrapped; it carries the hooks from now on.
        layers: layers of ``taps=``; none is fine.
        depth: after how many convolutions of the head to listen; None: not at all.
    """

    def __init__(self, student: Any, layers: Sequence[int], depth: int | None) -> None:
        self.layers = tuple(layers)
        self._layers = LayerTap(student, layers) if layers else None
        self._head = HeadTap(student, depth) if depth is not None else None

    def __call__(self, dense: Predictions) -> Predictions:
        """The predictions of the forward pass that has just been, with ``taps`` and ``hidden`` where asked for."""
        if self._layers is not None:
            dense = replace(dense, taps=self._layers.take())
        if self._head is not None:
            dense = replace(dense, hidden=self._head.take())
        return dense
