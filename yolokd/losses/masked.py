"""Masked generative distillation: from what is left of its map, the student has to say what the teacher saw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import levels_of
from yolokd.predictions import Assigned, Pair, Predictions


class Generation(nn.Module):
    """The generation block of one level: 3x3 convolution, ReLU, 3x3 convolution, at the teacher's width.

    Adapter and first convolution follow each other without anything between them, so that the two kernels are
    multiplied and one convolution runs from the student's width: the same value and the same gradient for both, at 60 %
    of the work (YOLO11-n under YOLO11-x) and without the adapted map in memory.

    Args:
        width: channels of the teacher's level.
        hidden: channels between the two convolutions.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, feature: Tensor, align: Tensor) -> Tensor:
        """Generate a teacher's map.

        Args:
            feature: ``(B, C, H, W)``, the student's, masked.
            align: ``(D, C, 1, 1)``, the weight of the adapter.

        Returns:
            ``(B, D, H, W)``.
        """
        kernel = torch.tensordot(self.first.weight, align[:, :, 0, 0], dims=([1], [0]))  # (hidden, 3, 3, C)
        inner = F.conv2d(feature, kernel.permute(0, 3, 1, 2), self.first.bias, padding=1)
        generated: Tensor = self.second(inner.relu())
        return generated


class MaskedGenerativeKD(nn.Module):
    """Make the student's masked map generate the teacher's whole one.

    Positions of the student's level are dropped at random, all channels at once, and a small block of convolutions has
    to rebuild the teacher's level everywhere. A position that is gone can only be told from its neighbours, so the
    student has to put more of the surroundings into each of them. The block goes when training ends.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022, https://arxiv.org/abs/2205.01529 (detection with a
    one-stage student: masked share 0.65, weight 2e-5).

    Departures: a mean instead of a sum. The paper's weight 2e-5 belongs to the squared differences *summed* over
    channels, positions and levels, mean over images; ours is the mean over all values of all levels, so the same loss
    has the gain 2e-5 * sum_l D_l * H_l * W_l. Under YOLO11-x (384, 768, 768 channels) at 640 px that is
    2e-5 * (384 * 80**2 + 768 * 40**2 + 768 * 20**2) = 2e-5 * 3,993,600 = 80, and 20 at 320 px; under YOLOv8-s
    (128, 256, 512) at 640 px it is 2e-5 * 1,433,600 = 29. The mean with a gain of 2e-5 would be no loss at all. A level
    weighs by its number of values, as in the sum: a mean of level means would have no gain that equals the paper. The
    adapter has no bias and is there when the widths are equal too.

    At the teacher's width the block is much heavier than a small student; ``hidden`` narrows it, which the paper does
    not. The masks come from random numbers of their own: the augmentation draws the same images with and without this
    loss, two runs of a seed draw the same masks, and a resumed run draws them from the beginning.

    Args:
        adapter: brings the student's levels to the teacher's widths.
        teacher_widths: channels of each teacher level.
        ratio: expected share of masked positions, at least 0 and below 1; 0 masks nothing, and the value
            repeats.
        hidden: channels between the two convolutions; 0 for the teacher's width, as in the paper.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level.
        return: ``()``, mean squared difference in the teacher's units, float32.

    Raises:
        ValueError: no features, levels of other sizes, or an option out of range.
    """

    def __init__(
        self, adapter: PyramidAdapter, teacher_widths: Sequence[int], ratio: float = 0.65, hidden: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"mgd.ratio is {ratio}; it must be at least 0 and below 1")
        if hidden < 0:
            raise ValueError(f"mgd.hidden is {hidden}; it must be at least 1, or 0 for the teacher's width")
        self.adapter = adapter
        self.generation = nn.ModuleList(Generation(w, hidden or w) for w in teacher_widths)
        self.ratio = float(ratio)
        # Plain numbers rather than a torch.Generator: those cannot be copied before torch 2.4.
        self._seed, self._drawn = int(torch.initial_seed()) & 0x7FFFFFFF, 0

    @classmethod
    def for_pair(cls, pair: Pair, *, ratio: float = 0.65, hidden: int = 0) -> MaskedGenerativeKD:
        """The loss of a pair, with a fresh adapter and fresh generation blocks."""
        return cls(PyramidAdapter.for_pair(pair), pair.teacher.widths, ratio, hidden)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        ours, theirs = levels_of("mgd", student, teacher)
        generator = torch.Generator().manual_seed(self._seed + self._drawn)
        self._drawn += 1
        total, values = ours[0].new_zeros(()), 0
        aligns = [conv.weight for conv in self.adapter.levels]
        for s, t, align, block in zip(ours, theirs, aligns, self.generation, strict=True):
            if s.shape[::2] != t.shape[::2] or s.shape[3] != t.shape[3]:
                raise ValueError(f"student level {tuple(s.shape)} against teacher level {tuple(t.shape)}")
            # Masked before the adapter, which has no bias, instead of after it: the same, and fewer channels.
            masked = s * self._keep(s, generator)
            total = total + F.mse_loss(block(masked, align), t.float(), reduction="sum")
            values += t.numel()
        return total / values

    def _keep(self, feature: Tensor, generator: torch.Generator) -> Tensor:
        """1 where a position stays, 0 where it is masked, each image its own: ``(B, 1, H, W)``."""
        batch, _, height, width = feature.shape
        drawn = torch.rand(batch, 1, height, width, generator=generator)  # on the CPU: the same masks on every device
        return (drawn < 1 - self.ratio).float().to(feature.device)
