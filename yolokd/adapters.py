"""The 1x1 convolutions that bring the student's pyramid levels to the teacher's widths, and how they are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from yolokd.predictions import Pair


class PyramidAdapter(nn.Module):
    """One 1x1 convolution a pyramid level.

    It exists only while training. One convolution, not two: a deep adapter learns to explain the teacher by itself
    and leaves the student little to learn (Ultralytics' own has 1.65 M parameters beside a student of 2.62 M). It has
    no bias unless asked for: most losses remove a constant a channel anyway, or ask only how much two features differ.

    Args:
        student_widths: channels of each student level.
        teacher_widths: channels of each teacher level.
        bias: for a loss to which a constant a channel does matter; it begins at 0.

    Raises:
        ValueError: the two have another number of levels.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int], bias: bool = False) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths):
            raise ValueError(f"{len(student_widths)} student levels against {len(teacher_widths)} teacher levels")
        convs = [nn.Conv2d(s, t, 1, bias=False) for s, t in zip(student_widths, teacher_widths, strict=True)]
        if bias:  # added here and not by Conv2d, which would draw other weights then
            for conv in convs:
                conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
        self.levels = nn.ModuleList(convs)

    @classmethod
    def for_pair(cls, pair: Pair, bias: bool = False) -> PyramidAdapter:
        """The adapter between the two pyramids of a pair."""
        return cls(pair.student.widths, pair.teacher.widths, bias)

    @property
    def weights(self) -> list[Tensor]:
        """A ``(D_l, C_l)`` matrix a level, for a loss that multiplies by itself."""
        return [conv.weight.flatten(1) for conv in self.levels]  # type: ignore[operator]

    @property
    def biases(self) -> list[Tensor | None]:
        """A ``(D_l,)`` vector a level, or None."""
        return [conv.bias for conv in self.levels]  # type: ignore[misc]

    def forward(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Bring ``(B, C_student, H, W)`` levels to ``(B, C_teacher, H, W)``."""
        return [conv(f) for conv, f in zip(self.levels, feats, strict=True)]


def rows(feature: Tensor) -> Tensor:
    """The features of each position: ``(B, C, H, W)`` to ``(B * H * W, C)``.

    Free for a map in channels_last, as a live teacher's are; to bring those into another order costs a CPU more than
    what a loss then does with them, so it is the student's, narrower map that is copied.
    """
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def product_dtype(teacher: Tensor) -> torch.dtype:
    """The number format in which a student's features are multiplied that are compared with these.

    Where the teacher runs in bfloat16 (by itself on a CPU that multiplies in it) its features have 8 binary digits, so
    a product need not have 24; it takes a quarter of the time. Sums are in float32 all the same. Otherwise float32:
    float16 could overflow.
    """
    return torch.bfloat16 if teacher.dtype is torch.bfloat16 else torch.float32


def adapted_rows(student: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """An adapted level as `rows`, multiplied in ``dtype``.

    Args:
        student: ``(N, C)``.
        weight: ``(D, C)``.
        bias: ``(D,)`` or None.
        dtype: see `product_dtype`.

    Returns:
        ``(N, D)``, float32.
    """
    return F.linear(student.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).float()


def add_to_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Give the adapters a group of their own in the student's optimizer.

    The group is named ``adapter``: a group named ``weight`` would get weight decay back after an out-of-memory retry,
    and MuSGD would orthogonalise a convolution that it finds in its ``muon`` group. Learning rate, betas and momentum
    are those of the plain bias group, said explicitly, since defaults of the optimizer class are not Ultralytics'.

    Args:
        optimizer: the student's optimizer, as Ultralytics built it.
        parameters: the parameters of all losses; none is fine.
    """
    if not parameters:
        return
    reference = min((g for g in optimizer.param_groups if g.get("param_group") == "bias"), key=lambda g: g["lr"])
    # `use_muon` and the like are copied too: the bias group is never orthogonalised.
    group = {k: v for k, v in reference.items() if k not in {"params", "initial_lr"}}
    optimizer.add_param_group({**group, "params": list(parameters), "weight_decay": 0.0, "param_group": "adapter"})


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Make every rank hold the mean of all ranks' gradients; nothing to do for a single process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
