"""Losses on the feature pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolokd.adapters import PyramidAdapter, adapted_rows, product_dtype, rows
from yolokd.predictions import Assigned, Pair, Predictions

# Added to a variance before it divides, as in BatchNorm.
VARIANCE_EPS = 1e-5


def normalise(feature: Tensor) -> Tensor:
    """Zero mean and unit variance a channel over batch and positions: BatchNorm without affine or running values.

    Args:
        feature: ``(B, C, H, W)``; with one value a channel (a 1x1 level of one image) the result is 0.
    """
    if feature.numel() == feature.shape[1]:  # batch_norm refuses this; a lone value is its own mean
        return feature * 0
    return F.batch_norm(feature, None, None, training=True)


def levels_of(name: str, student: Predictions, teacher: Predictions) -> tuple[list[Tensor], list[Tensor]]:
    """The levels of both, the student's in float32, the teacher's without gradient and as precise as they come.

    Args:
        name: of the loss that asks.
        student: its predictions.
        teacher: its predictions.

    Raises:
        ValueError: no features, or another number of levels.
    """
    if student.feats is None or teacher.feats is None:
        raise ValueError(f"{name} needs the pyramid features of student and teacher")
    if len(student.feats) != len(teacher.feats):
        raise ValueError(f"{len(student.feats)} student levels against {len(teacher.feats)} teacher levels")
    return [f.float() for f in student.feats], [f.detach() for f in teacher.feats]


def refuse_other_shape(student: Tensor, width: int, teacher: Tensor) -> None:
    """Check that a student's level, adapted, has the shape of the teacher's.

    Args:
        student: ``(B, C, H, W)``.
        width: channels after the adapter.
        teacher: ``(B, D, H, W)``.

    Raises:
        ValueError: it has not.
    """
    adapted = (student.shape[0], width, *student.shape[2:])
    if adapted != tuple(teacher.shape):
        raise ValueError(f"adapted student level {adapted} against teacher level {tuple(teacher.shape)}")


def variances(student: Tensor, weight: Tensor) -> Tensor:
    """The variance of each adapted channel, without computing the adapted level.

    The adapter is linear: with S the covariance of the student's own, narrow channels, the channel of weights ``w``
    has variance ``w S w``. In float32 whatever the products are: where the channels all but cancel, no digit is left
    over.

    Args:
        student: ``(N, C)``, each channel of mean 0.
        weight: ``(D, C)``.

    Returns:
        ``(D,)``.
    """
    # Both factors are the same map: twice the gradient of one is that of both, for one product less on the way back.
    # It holds since what comes back below is symmetric.
    half = student.mT @ student.detach() / len(student)
    covariance = 2 * half - half.detach()
    return ((weight @ covariance) * weight).sum(1).clamp(min=0)  # rounding may leave it a hair below


class ChannelWiseKD(nn.Module):
    """Match where each channel of the pyramid looks.

    Each channel's activations become a distribution over positions; the student's, brought to the teacher's width by
    a 1x1 adapter, is drawn to the teacher's. Channels that the teacher uses for background weigh little then, since
    only the shape of the map counts, not its size.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
    https://arxiv.org/abs/2011.13256. Departures: both sides are normalised a channel (BatchNorm without affine), so
    that one temperature fits every channel of every teacher; the adapter has no bias, which the normalisation would
    remove; the levels are averaged, so that the gain does not depend on their number; the temperature is 1, the
    paper's is 4 for pixels that are not normalised. Under a bfloat16 teacher the
    adapter multiplies in bfloat16 (see `product_dtype`).

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
        student_levels, teacher_levels = levels_of("cwd", student, teacher)
        total = student_levels[0].new_zeros(())
        for s, weight, t in zip(student_levels, self.adapter.weights, teacher_levels, strict=True):
            refuse_other_shape(s, len(weight), t)
            total = total + self._level(s, weight, t)
        return total / len(teacher_levels)

    def _level(self, student: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student) over positions, mean over images and channels.

        The student's normalisation goes into the weights; no softmax sees the shift that it takes off.

        Args:
            student: ``(B, C, H, W)``.
            weight: ``(D, C)`` of the adapter.
            teacher: ``(B, D, H, W)``.
        """
        batch, channels = teacher.shape[:2]
        with torch.no_grad():
            target = rows(normalise(teacher.float())).div_(self.temperature)  # (B * H * W, D)
            log_p = target.view(batch, -1, channels).log_softmax(1)
            p = log_p.exp()
            negative_entropy = torch.dot(p.flatten(), log_p.flatten())
        s = rows(student)
        s = s - s.mean(0)
        scale = (variances(s, weight) + VARIANCE_EPS).rsqrt() / self.temperature
        logits = adapted_rows(s, weight * scale[:, None], None, product_dtype(teacher))
        log_q = logits.view(batch, -1, channels).log_softmax(1)
        # Not kl_div: its differences and logarithms of every target take longer than both softmaxes.
        divergence = negative_entropy - torch.dot(p.flatten(), log_q.flatten())
        return divergence * self.temperature**2 / (batch * channels)


# The least mean square that a teacher's level is taken to have.
POWER_EPS = 1e-6


class FitNets(nn.Module):
    """Predict the teacher's features from the student's: regression, with the squared error.

    The oldest feature loss and the strictest: size and shift of every activation are to be told, not only its place.
    It works wherever two layers have the same stride.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550.
    Departures: each level's error is divided by the teacher's mean square there (no gradient), so that one gain fits
    every teacher and no level drowns the others: 0 is a perfect guess, 1 as bad as guessing 0; the mean over images,
    channels and positions without a factor, where the paper has half the sum (the gain of 100 that benchmarks of
    classifiers use belongs to the mean of features that are not divided); beside the detection loss all through
    training, not a stage before it; a linear 1x1 regressor instead of one with the hint's nonlinearity, on several
    levels, averaged. Under a bfloat16 teacher the
    adapter multiplies in bfloat16 (see `product_dtype`).

    The adapter has a bias, unlike that of ``cwd``: nothing here removes a constant a channel, and the student's
    features should not have to make one up.

    Args:
        adapter: brings the student's levels to the teacher's widths.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level.
        return: ``()``, a share of the teacher's mean square, float32.

    Raises:
        ValueError: no features, another number of levels, or levels of other sizes.
    """

    def __init__(self, adapter: PyramidAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    @classmethod
    def for_pair(cls, pair: Pair) -> FitNets:
        """The loss of a pair, with a fresh adapter."""
        return cls(PyramidAdapter.for_pair(pair, bias=True))

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        student_levels, teacher_levels = levels_of("fitnets", student, teacher)
        total = student_levels[0].new_zeros(())
        parts = zip(student_levels, self.adapter.weights, self.adapter.biases, teacher_levels, strict=True)
        for s, weight, bias, t in parts:
            refuse_other_shape(s, len(weight), t)
            guess, target = adapted_rows(rows(s), weight, bias, product_dtype(t)), rows(t).float()
            power = target.square().mean()
            total = total + F.mse_loss(guess, target) / power.clamp(min=POWER_EPS)
        return total / len(teacher_levels)


class AttentionTransfer(nn.Module):
    """Match where each level of the pyramid is active, all channels together.

    The channels' magnitudes add up to one map a level. Only its shape counts, so student and teacher may differ in
    width and in scale, and nothing but the student is trained.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", ICLR 2017, https://arxiv.org/abs/1612.03928. Departures: the distance of
    the two unit maps is squared and has no 1/2, as in the authors' code (the paper writes beta / 2 times the norm);
    it is summed over positions where that code averages, so that the value lies in [0, 2] at every image size; the
    levels are averaged, there they are added up. The published beta = 1000 belongs to the mean over positions: on the
    paper's maps of 32, 16 and 8 cells a side that is 1, 4 and 16 times a level's value here, so a gain of 12 (their
    geometric mean, 4, times three levels) where all count alike.

    Args:
        power: of the magnitudes before they are added up, at least 1; the higher, the more the peaks count.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level.
        return: ``()``, dimensionless, 0 to 2, float32. A map of zeros stays one and passes no gradient.

    Raises:
        ValueError: no features, another number of levels, levels of other sizes, or a power below 1.
    """

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        if not 1 <= power < float("inf"):
            raise ValueError(f"at.power is {power}; it must be at least 1")
        self.power = float(power)

    @classmethod
    def for_pair(cls, pair: Pair, *, power: float = 2.0) -> AttentionTransfer:
        """The loss of a pair; it has nothing that depends on it."""
        return cls(power)

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        student_levels, teacher_levels = levels_of("at", student, teacher)
        total = student_levels[0].new_zeros(())
        for s, t in zip(student_levels, teacher_levels, strict=True):
            if s.shape[0] != t.shape[0] or s.shape[2:] != t.shape[2:]:
                raise ValueError(f"student level {tuple(s.shape)} against teacher level {tuple(t.shape)}")
            total = total + (self._map(s) - self._map(t.float())).square().sum(1).mean()
        return total / len(student_levels)

    def _map(self, feature: Tensor) -> Tensor:
        """The activity at each position as a unit vector: ``(B, C, H, W)`` to ``(B, H * W)``."""
        # The general power costs ten times the square.
        magnitude = feature.square() if self.power == 2 else feature.abs().pow(self.power)
        return F.normalize(magnitude.sum(1).flatten(1))  # divides by at least 1e-12, so zeros stay zeros
