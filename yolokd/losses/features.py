"""Losses on the feature pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.adapters import PyramidAdapter
from yolokd.predictions import Assigned, Pair, Predictions


def normalise(feature: Tensor) -> Tensor:
    """Zero mean and unit variance a channel over batch and positions: BatchNorm without affine or running values.

    Args:
        feature: ``(B, C, H, W)``, with more than one value a channel.
    """
    return F.batch_norm(feature, None, None, training=True)


class ChannelWiseKD(nn.Module):
    """Match where each channel of the pyramid looks.

    Each channel's activations become a distribution over positions; the student's, brought to the teacher's width by
    a 1x1 adapter, is drawn to the teacher's. Channels that the teacher uses for background weigh little then, since
    only the shape of the map counts, not its size.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
    https://arxiv.org/abs/2011.13256. Departures: both sides are normalised a channel (BatchNorm without affine), so
    that one temperature fits every channel of every teacher; the adapter has no bias, which the normalisation would
    remove; the levels are averaged, so that the gain does not depend on their number; the temperature is 1, the
    paper's is 4 for pixels that are not normalised.

    Args:
        adapter: brings the student's levels to the teacher's widths.
        temperature: softens both distributions; the loss is scaled by its square.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level.
        return: ``()``, nats a channel, float32.

    Raises:
        ValueError: no features, levels of other sizes, or a temperature that is not positive.
    """

    def __init__(self, adapter: PyramidAdapter, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"cwd.temperature is {temperature}; it must be above 0")
        self.adapter = adapter
        self.temperature = float(temperature)

    @classmethod
    def for_pair(cls, pair: Pair, *, temperature: float = 1.0) -> ChannelWiseKD:
        """The loss of a pair, with a fresh adapter."""
        return cls(PyramidAdapter.for_pair(pair), temperature)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        if student.feats is None or teacher.feats is None:
            raise ValueError("cwd needs the pyramid features of student and teacher")
        total = student.feats[0].new_zeros((), dtype=torch.float32)
        adapted = self.adapter([f.float() for f in student.feats])
        for s, t in zip(adapted, teacher.feats, strict=True):
            if s.shape != t.shape:
                raise ValueError(f"adapted student level {tuple(s.shape)} against teacher level {tuple(t.shape)}")
            total = total + self._level(s, t.float())
        return total / len(adapted)

    def _level(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student) over positions, mean over images and channels: two ``(B, C, H, W)`` to ``()``."""
        batch, channels = teacher.shape[:2]
        with torch.no_grad():
            t = (normalise(teacher).flatten(2) / self.temperature).log_softmax(-1)
        s = (normalise(student).flatten(2) / self.temperature).log_softmax(-1)
        divergence = F.kl_div(s, t, reduction="sum", log_target=True)
        return divergence * self.temperature**2 / (batch * channels)
