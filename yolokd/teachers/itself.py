"""A student that teaches itself: its own average over training, or its deepest level teaching the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.compat.boxes import anchor_points, bins_of, decode, encode, expected_distances
from yolokd.compat.training import branches
from yolokd.predictions import HeadInfo, Predictions
from yolokd.teachers.live import LARGER


class RunningTeacher:
    """A network that is being trained while it teaches: the EMA of the student, or a peer.

    It is asked in eval mode and without gradient, and neither changed nor kept: training goes on with it. Its head
    alone is in training mode while it answers, since that one decodes nothing.

    Source: the average of a student as its teacher is Mean Teacher (Tarvainen, Valpola, NIPS 2017,
    https://arxiv.org/abs/1703.01780). Departures: the average is Ultralytics' own EMA, the one that is validated and
    saved, and both see the same augmented image.

    Args:
        network: gives the network as it is now; a function, since Ultralytics exchanges the EMA on resume.
        info: its head.
        name: what messages call it.
    """

    dtype = torch.float32

    def __init__(self, network: Callable[[], nn.Module], info: HeadInfo, name: str) -> None:
        self.info = info
        self.name = name
        self.learns = name.startswith("peer:")  # as a student of its own, which may break and be taken up again
        self._network = network

    @property
    def model(self) -> nn.Module:
        """The network as it is now."""
        return self._network()

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """Its dense predictions for ``batch["img"]``, ``(B, 3, H, W)`` in [0, 1]."""
        network = self._network()
        with _asked(network):
            images: Tensor = batch.get(LARGER, batch["img"])
            return branches(network(images.to(next(network.parameters()).dtype)))[0]


@contextmanager
def _asked(network: Any) -> Iterator[None]:
    """In eval mode, but for a head that decodes nothing; afterwards every module is as it was."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    network.model[-1].training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class DeepestLevel:
    """The deepest level of the student's own pyramid as the teacher of all of them.

    It sees most of the image. What it says is enlarged to the finer levels: the class probabilities and the features of
    the cell that covers theirs, and its box, measured from their own anchors. At its own anchors it agrees with
    itself, so no response loss comes from there; a loss on features has an adapter there too, which learns to pass on.

    Source: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation", ICCV 2019, https://arxiv.org/abs/1905.08094, where the deepest classifier of a network teaches the
    shallower ones. Departure: a detector's levels answer for objects of other sizes, so a response is only a soft
    target beside the detection loss's own assignment.

    Args:
        info: the student's head.
    """

    name = "self:levels"
    dtype = torch.float32

    def __init__(self, info: HeadInfo) -> None:
        self.info = replace(info, widths=(info.widths[-1],) * len(info.widths), hidden=())

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Predictions:
        """The deepest level's part of ``batch["student"]``, at every level."""
        said: Predictions = batch["student"]
        assert said.feats is not None
        assert said.scores is not None
        assert said.boxes is not None
        sizes = [(f.shape[2], f.shape[3]) for f in said.feats]
        first = sum(h * w for h, w in sizes[:-1])
        points, strides = anchor_points(said.feats, self.info.strides)

        def enlarged(deepest: Tensor) -> Tensor:
            """``(B, C, A_deepest)`` of the deepest level, at all anchors."""
            grid = deepest.float().view(*deepest.shape[:2], *sizes[-1])
            return torch.cat([F.interpolate(grid, size, mode="nearest").flatten(2) for size in sizes], 2)

        edges = said.boxes[..., first:].float().transpose(1, 2)  # (B, A_deepest, 4 * R)
        distances = expected_distances(edges.flatten(0, 1)).view(*edges.shape[:2], 4)
        boxes = decode(distances, points[first:], strides[first:])
        everywhere = encode(enlarged(boxes.transpose(1, 2)).transpose(1, 2), points, strides)  # (B, A, 4) strides
        raw = bins_of(everywhere, self.info.reg_max).transpose(1, 2)
        raw = torch.cat([raw[..., :first], said.boxes[..., first:].float()], 2)
        # Bins end at reg_max - 1 strides: a fine level cannot say a box that is larger, or that lies beside its anchor.
        there = (everywhere >= 0) & ((everywhere <= self.info.reg_max - 1) | (self.info.reg_max == 1))
        there[:, first:] = True
        feats = tuple(F.interpolate(said.feats[-1], size, mode="nearest") for size in sizes)
        return Predictions(enlarged(said.scores[..., first:]), raw, feats, edges=there.transpose(1, 2))
