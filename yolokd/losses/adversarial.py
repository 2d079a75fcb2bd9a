"""Losses that play against the student: a discriminator learns to tell its features from the teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.adapters import PyramidAdapter
from yolokd.losses.features import VARIANCE_EPS, levels_of
from yolokd.predictions import Assigned, Pair, Predictions


class _Reverse(torch.autograd.Function):
    """The identity, with a gradient that points the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse(x: Tensor, strength: float) -> Tensor:
    """``x`` itself; on the way back the gradient is multiplied by ``-strength``.

    Args:
        x: any tensor.
        strength: 0 stops the gradient, 1 turns it round.
    """
    result: Tensor = _Reverse.apply(x, strength)
    return result


class Discriminator(nn.Module):
    """Is the feature of one position the teacher's? Two 1x1 convolutions on channels of zero mean and unit variance.

    Each unit's weights are brought to length 1, so the logit changes by at most ``sqrt(hidden)`` times the
    standardised feature: it cannot become so steep that the reversed gradient has no bound. Mean and variance are
    those of the batch, as in BatchNorm without affine. The adapter before it and the standardisation are linear, so
    they are folded into the first convolution: the student's map is never made at the teacher's width.

    Args:
        channels: of the teacher's level.
        hidden: units between the two convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 1)
        self.second = nn.Conv2d(hidden, 1, 1)

    def forward(self, feature: Tensor, adapter: Tensor | None = None) -> Tensor:
        """Logits, positive where it takes the feature for the teacher's.

        Args:
            feature: ``(B, C, H, W)``, float32.
            adapter: ``(channels, C)`` weight that brings the feature to the teacher's width; None: it has it already.

        Returns:
            ``(B, 1, H, W)``.
        """
        first = F.normalize(self.first.weight.flatten(1), dim=1)  # (hidden, channels)
        feature = feature - feature.mean((0, 2, 3), keepdim=True)
        if adapter is None:
            variance = feature.square().mean((0, 2, 3))  # `Tensor.var` takes 30 times as long on a CPU
            first = first / (variance + VARIANCE_EPS).sqrt()
        else:
            x = feature.flatten(2)
            covariance = (x @ x.transpose(1, 2)).mean(0) / x.shape[2]  # (C, C)
            # The variance of each adapted channel; rounding can take it below 0 where it is 0.
            variance = ((adapter @ covariance) * adapter).sum(1).clamp(min=0)
            first = first @ (adapter / (variance + VARIANCE_EPS).sqrt()[:, None])  # (hidden, C)
        hidden = F.leaky_relu(F.conv2d(feature, first[..., None, None], self.first.bias), 0.2)
        return F.conv2d(hidden, F.normalize(self.second.weight, dim=1), self.second.bias)


class AdversarialKD(nn.Module):
    """Make the student's features such that a discriminator cannot tell them from the teacher's.

    A comparison of maps asks for the teacher's features position by position; this one only asks for features of the
    teacher's kind: which channels go together and how their values are spread. It knows nothing of what is where, so
    it belongs beside a loss that does.

    A small discriminator a level learns to tell whose feature a position holds. Between it and the adapted student
    the gradient is reversed, so that with one backward pass and one optimizer step the discriminator gets better at
    it while student and adapter make it harder. The value is the discriminator's loss and **not a distance**: it is
    log 2 = 0.693 where the two are told apart no better than by a coin, less where the discriminator wins. So a rise
    to log 2 is what is hoped for, also where student and teacher are equal. ``logged["accuracy"]`` says the same more
    plainly: 0.5 where the discriminator is fooled, 1 where it is always right.

    Sources: Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015,
    https://arxiv.org/abs/1409.7495 (the reversal); Shen, He, Xue, "MEAL: Multi-Model Ensemble via Adversarial
    Learning", AAAI 2019, https://arxiv.org/abs/1812.02425 (a discriminator a block between the features of student
    and teacher); Chung et al., "Feature-map-level Online Adversarial Knowledge Distillation", ICML 2020,
    https://arxiv.org/abs/2002.01775 (on feature maps). Departures: the two steps in turn of MEAL become one by the
    reversal; the discriminator judges positions, not pooled features or whole maps, with 1x1 convolutions; student
    and teacher are standardised a channel, each by its own batch, so that an adapter wins nothing by scale; the
    reversal's strength is fixed, since the gains' ramp already begins at 0; levels are averaged.

    Bounded: units of the discriminator have weights of length 1 (in place of spectral normalisation, Miyato et al.,
    ICLR 2018), so that the gradient on a level's standardised student features, summed in length over all positions,
    is at most ``strength * sqrt(hidden) / 2``, divided by the number of levels. It fades where the discriminator is
    sure. A gain multiplies it, and the discriminator's own gradient too, which the learning rate of an Adam does not
    feel; ``strength`` multiplies the student's and the adapter's alone. A student of fewer channels than the teacher
    fills only a part of its space, and can in the end be told apart by that: an accuracy somewhat above 0.5 is normal.

    It compares across the batch by the standardisation; a batch repeated has the same value.

    Args:
        student_widths: channels of each student level.
        teacher_widths: channels of each teacher level.
        strength: of the reversed gradient, above 0.
        hidden: units of a discriminator.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, h_l, w_l)`` tensor a level, of any height and width.
        return: ``()``, nats a position, float32, not negative.

    Raises:
        ValueError: no features, another number of levels or channels, or an option outside its range.
    """

    def __init__(
        self,
        student_widths: tuple[int, ...],
        teacher_widths: tuple[int, ...],
        strength: float = 1.0,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"adv.strength is {strength}; it must be above 0")
        if hidden < 1:
            raise ValueError(f"adv.hidden is {hidden}; it must be at least 1")
        self.widths = (tuple(student_widths), tuple(teacher_widths))
        self.adapter = PyramidAdapter(student_widths, teacher_widths)
        self.discriminators = nn.ModuleList(Discriminator(width, hidden) for width in teacher_widths)
        self.strength = float(strength)
        self.logged = {"accuracy": torch.zeros(())}

    @classmethod
    def for_pair(cls, pair: Pair, *, strength: float = 1.0, hidden: int = 32) -> AdversarialKD:
        """The loss of a pair, with a fresh adapter and fresh discriminators."""
        return cls(pair.student.widths, pair.teacher.widths, strength, hidden)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        ours, theirs = levels_of("adv", student, teacher)
        widths = tuple(tuple(f.shape[1] for f in feats) for feats in (ours, theirs))
        if widths != self.widths:
            raise ValueError(f"adv was built for student and teacher levels of {self.widths} channels, not {widths}")
        total = ours[0].new_zeros(())
        accuracy = torch.zeros_like(total)
        parts = zip(self.discriminators, self.adapter.levels, ours, theirs, strict=True)
        for discriminator, conv, s, t in parts:
            # What makes the student's logits are its features and the adapter: both hear the opposite.
            weight = reverse(conv.weight.flatten(1), self.strength)  # type: ignore[operator]
            s_logits = discriminator(reverse(s, self.strength), weight)
            t_logits = discriminator(t.float())
            total = total + (F.softplus(s_logits).mean() + F.softplus(-t_logits).mean()) / 2
            with torch.no_grad():
                accuracy = accuracy + ((s_logits < 0).float().mean() + (t_logits > 0).float().mean()) / 2
        self.logged = {"accuracy": accuracy / len(self.discriminators)}
        return total / len(self.discriminators)
