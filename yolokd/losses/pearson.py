"""The correlation of student's and teacher's features."""

from __future__ import annotations

from torch import Tensor, nn

from yolokd.adapters import PyramidAdapter, product_dtype, rows
from yolokd.losses.features import VARIANCE_EPS, levels_of, refuse_other_shape, variances
from yolokd.predictions import Assigned, Pair, Predictions


def moments(student: Tensor, weight: Tensor | None, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances and covariance of an adapted level and the teacher's, without computing the adapted level.

    As in `variances`, with ``J`` the covariances of the student's own channels with the teacher's: the adapted channel
    of weights ``w`` has the covariance ``w J``. For a wide teacher that takes half the time of the adapted map, its
    normalisation and their gradients.

    Args:
        student: ``(B, C, H, W)``.
        weight: ``(D, C)`` of the bias-free adapter; None compares channel with channel, D = C.
        teacher: ``(B, D, H, W)``, without gradient.

    Returns:
        a channel over batch and positions, ``(D,)`` each: the student's variance, the teacher's, the covariance.

    Raises:
        ValueError: the adapted level would have another shape than the teacher's.
    """
    refuse_other_shape(student, student.shape[1] if weight is None else len(weight), teacher)
    s, t = rows(student), rows(teacher)
    s = s - s.mean(0)
    centred = t.float()
    centred = centred - centred.mean(0)
    t_variance = centred.square().mean(0)
    if weight is None:
        return s.square().mean(0), t_variance, (s * centred).mean(0)
    dtype = product_dtype(teacher)
    joint = (t.to(dtype).mT @ s.to(dtype)).float() / len(s)  # (D, C); one side without its mean is enough
    return variances(s, weight), t_variance, (weight * joint).sum(1)


class PearsonKD(nn.Module):
    """Make each channel of the student correlate with the teacher's.

    Half the mean squared error of two normalised maps is one minus their Pearson correlation. It knows no scale and
    no shift, so a channel, a level or a teacher with large activations does not drown the rest.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", NeurIPS 2022, https://arxiv.org/abs/2207.02039. Mean, variance and correlation are those of a
    channel over batch and positions, as there. Departures: the levels are averaged instead of added up (the authors'
    weight is 6 a level, 10 for single-stage teachers, so a gain of 18 or 30 for three levels); 1e-5 is added to
    the variance instead of 1e-6 to the deviation; where the two pyramids differ in width, which the paper's do
    not, a 1x1 adapter without bias (a shift does not count) brings every level to the teacher's. Where all
    widths agree there is none, as in the paper. Under a bfloat16 teacher the
    adapter multiplies in bfloat16 (see `product_dtype`).

    Args:
        adapter: brings the student's levels to the teacher's widths; None compares channel with channel.

    Shape:
        student.feats: a ``(B, C_l, H_l, W_l)`` tensor a level.
        teacher.feats: a ``(B, D_l, H_l, W_l)`` tensor a level.
        return: ``()``, one minus a correlation, 0 to 2, float32. A channel that is constant on both sides (a 1x1
            level of one image is) gives 0 and no gradient, on one side 1/2.

    Raises:
        ValueError: no features, another number of levels, or levels of other sizes.
    """

    def __init__(self, adapter: PyramidAdapter | None) -> None:
        super().__init__()
        self.adapter = adapter

    @classmethod
    def for_pair(cls, pair: Pair) -> PearsonKD:
        """The loss of a pair, with a fresh adapter where the widths differ."""
        same = tuple(pair.student.widths) == tuple(pair.teacher.widths)
        return cls(None if same else PyramidAdapter.for_pair(pair))

    def forward(self, student: Predictions, teacher: Predictions, assigned: Assigned) -> Tensor:
        """See the class."""
        student_levels, teacher_levels = levels_of("pkd", student, teacher)
        weights = [None] * len(student_levels) if self.adapter is None else self.adapter.weights
        total = student_levels[0].new_zeros(())
        for s, weight, t in zip(student_levels, weights, teacher_levels, strict=True):
            s_variance, t_variance, covariance = moments(s, weight, t)
            s_norm, t_norm = s_variance + VARIANCE_EPS, t_variance + VARIANCE_EPS
            # The variance after normalisation: 1, but for a channel that is as good as constant.
            left = (s_variance / s_norm + t_variance / t_norm) / 2
            distance = left - covariance * s_norm.rsqrt() * t_norm.rsqrt()
            total = total + distance.mean().clamp(min=0)  # rounding may leave it a hair below
        return total / len(student_levels)
